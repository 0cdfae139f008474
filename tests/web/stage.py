"""What the test in a browser plays on: a private instance with guardian-web before it, and a browser that keeps watch."""
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CONFIG = """
[instance]
sample_interval = "1s"

[workflow.deploy]
max_running = 1
"""

# In every page, before any script of its own: what must never happen is kept, to be asked for later.
WATCH = """
window.__trouble = [];
addEventListener('securitypolicyviolation', (e) => __trouble.push(`csp: ${e.violatedDirective} ${e.blockedURI}`));
addEventListener('error', (e) => __trouble.push(`error: ${e.message}`));
addEventListener('unhandledrejection', (e) => __trouble.push(`rejection: ${e.reason}`));
for (const name of ['alert', 'confirm', 'prompt']) window[name] = (text) => { __trouble.push(`${name}: ${text}`); };
window.__seen = {};
new MutationObserver((changes) => {
  for (const c of changes) for (const n of c.addedNodes) {
    if (n.nodeType !== 1) continue;
    for (const row of [n, ...n.querySelectorAll('tr[data-key]')]) {
      if (row.dataset?.key) __seen[row.dataset.key] ??= Date.now();
    }
  }
}).observe(document, { childList: true, subtree: true });
"""


class Failed(Exception):
    """What should have been was not."""


def until(what, look, seconds=10):
    """What `look` gives, once it gives something; fails when that takes longer."""
    end, last = time.monotonic() + seconds, None
    while True:
        try:
            last = look()
        except Exception as e:  # noqa: BLE001 - an element that was just replaced is looked for again
            last, problem = None, e
        else:
            problem = None
        if last:
            return last
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s" + (f" ({problem})" if problem else ""))
        time.sleep(0.05)


def is_there(pid):
    """Whether there is such a process, and not only what is left of it until its parent looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Instance:
    """A private instance in a directory of its own, and guardian-web."""

    def __init__(self, guardian, web):
        self.guardian, self.web = str(guardian), str(web)
        self.dir = Path(tempfile.mkdtemp(prefix="guardian-browser-"))
        self.config = self.dir / "config.toml"
        self.config.write_text(CONFIG)
        self.options = ["--state-dir", str(self.dir / "state"), "--config", str(self.config)]
        self.server, self.port = None, 0

    def run_cli(self, *args, check=True):
        done = subprocess.run([self.guardian, *self.options, *args], capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise Failed(f"guardian {' '.join(args)}: {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def json(self, *args):
        return json.loads(self.run_cli("--json", *args))

    def start(self, *args):
        """Starts a detached run; gives its id."""
        return self.run_cli("run", "--detach", *args).strip()

    def show(self, run):
        shown = self.json("show", run)
        return shown[0] if isinstance(shown, list) else shown

    def token(self, role, name):
        made = self.json("token", "new", "--role", role, name)
        return made["token"]

    def serve(self):
        """Starts guardian-web, at the port that it had before if it had one; gives the link that it prints."""
        command = [self.web, "--private", "--state-dir", str(self.dir / "state"), "--listen", f"127.0.0.1:{self.port}", "--print-link"]
        self.log = open(self.dir / "web.log", "a")
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        link = self.server.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#code=\S+", link)
        if not found:
            raise Failed(f"guardian-web printed no link but {link!r}: {(self.dir / 'web.log').read_text()}")
        self.port = int(found[1])
        return link

    def stop_serving(self):
        if self.server:
            self.server.terminate()
            self.server.wait(20)
            self.server.stdout.close()
            self.log.close()
            self.server = None

    def pid(self):
        return int((self.dir / "state/instance.lock").read_text().strip())

    def die(self):
        """The end of the instance by force; its runs go on."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        until("the instance is gone", lambda: not is_there(pid))

    def post(self, path, body, cookie=None, origin=True):
        """A POST as the dashboard would send it, with the cookie of a browser; gives status and answer."""
        base = f"http://127.0.0.1:{self.port}"
        headers = {"Content-Type": "application/json"}
        if cookie:
            headers["Cookie"] = cookie
        if origin:
            headers["Origin"] = base
        request = urllib.request.Request(base + path, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as e:
            return e.code, json.load(e)

    def close(self):
        try:
            live = self.run_cli("ps", "--quiet", check=False).split()
            if live:
                self.run_cli("kill", "--force", "--reason", "the test is over", *live, check=False)
        finally:
            self.stop_serving()
            try:
                os.kill(self.pid(), signal.SIGTERM)
            except (OSError, ValueError):
                pass
            key = self.dir / "state/instance-key"
            name = key.read_text().strip() if key.exists() else None
            time.sleep(0.3)
            for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                for cgroup in sorted(Path(mount, "guardian").glob(f"{name}*"), reverse=True) if name else []:
                    shutil.rmtree(cgroup, ignore_errors=True)
            shutil.rmtree(self.dir, ignore_errors=True)


class Screen:
    """A browser without a window."""

    def __init__(self, out):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.by, self.keys, self.out = By.CSS_SELECTOR, Keys, out
        options = webdriver.ChromeOptions()
        # In a container /dev/shm is small, and root has no sandbox.
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--window-size=1280,800", "--lang=en"]
        for argument in arguments + (["--no-sandbox"] if os.geteuid() == 0 else []):
            options.add_argument(argument)
        options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_script_timeout(30)
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        self.size(1280)

    def cdp(self, name, **arguments):
        return self.driver.execute_cdp_cmd(name, arguments)

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def open(self, url):
        self.driver.get(url)

    def go(self, page):
        self.js("location.hash = arguments[0]", f"#/{page}")

    def find(self, selector, seconds=10):
        return until(f"{selector} is there", lambda: self.driver.find_element(self.by, selector), seconds)

    def all(self, selector):
        return self.driver.find_elements(self.by, selector)

    def text(self, selector="body"):
        """All text below, as it would be read: `textContent`, which leaves nothing out that is folded."""
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def type(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains
        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, selector):
        def click():
            element = self.find(selector)
            self.js("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        until(f"{selector} can be clicked", click)

    def button(self, text, within="body"):
        """The button with this text."""
        found = [b for b in self.all(f"{within} button") if b.text == text]
        return found[0] if found else None

    def cookie(self):
        return "; ".join(f"{c['name']}={c['value']}" for c in self.driver.get_cookies())

    def size(self, width):
        height = 844 if width < 600 else 800
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if width < 600 else 1, mobile=False)

    def scheme(self, name):
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def shoot(self, name):
        """Pictures of the page as it is, at both widths and in both schemes, for a person to look at."""
        import base64
        self.js("document.querySelectorAll('.toast').forEach((t) => t.remove())")
        for width in (1280, 390):
            self.size(width)
            for scheme in ("light", "dark"):
                self.scheme(scheme)
                time.sleep(0.25)
                wide = self.js("return document.documentElement.scrollWidth")
                if wide > width:
                    raise Failed(f"{name} is {wide} px wide on a screen of {width}")
                picture = self.cdp("Page.captureScreenshot", format="png")
                (self.out / f"{name}-{width}-{scheme}.png").write_bytes(base64.b64decode(picture["data"]))
        self.size(1280)
        self.scheme("light")

    def trouble(self, expected=()):
        """What the browser complained of since it was asked last, but for what was provoked."""
        said = [f"{line['level']}: {line['message']}" for line in self.driver.get_log("browser")]
        said = [line for line in said if not any(part in line for part in expected)]
        return said + self.js("return (window.__trouble ?? []).splice(0)")

    def close(self):
        self.driver.quit()
