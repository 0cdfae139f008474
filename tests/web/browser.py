#!/usr/bin/python3
"""The dashboard in a real browser: tests/web/browser.py --guardian EXE --web EXE [--out DIR] [--only NAME]...

Against a private instance and a guardian-web of its own, with real runs. It needs Debian's chromium, chromium-driver and
python3-selenium; without them it says so and exits with 77, or with 1 if CI=true. Pictures of every page at 1280 and 390 px,
light and dark, are left in --out (target/web unless told) for a person to look at. The README's, packaging/doc/dashboard.png,
is a live-1280-light.png of these.
"""
import argparse
import colorsys
import os
import re
import shutil
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from looks import CONTRAST, NAMELESS, UNSAFE  # noqa: E402
from stage import Failed, Instance, Screen, is_there, until  # noqa: E402

# Ignores SIGTERM and has a child, so that a kill takes its whole grace; and works a little, so that there is something to draw.
DEAF = "trap '' TERM; echo deaf; sleep 1000 & while :; do for n in $(seq 9999); do :; done; sleep 0.2; done"
SCRIPT = "<script>alert(1)</script>"
MARKUP = "<img src=x onerror=alert(2)><b>bold</b>"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066"


def check(is_so, what):
    if not is_so:
        raise Failed(what)


def row(run):
    return f'tr[data-key="{run}"]'


class Tests:
    """Each method is a rule; they are played in order, on one stage."""

    def __init__(self, instance, screen):
        self.i, self.s = instance, screen
        self.stuck = self.idle = self.deaf = None

    def health_shown(self, run):
        return self.s.js("return document.querySelector(arguments[0])?.textContent", f"{row(run)} .c-health")

    def hue(self, selector):
        """The hue of a colour on the page, in degrees."""
        color = self.s.js("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        red, green, blue = (int(float(n)) / 255 for n in re.findall(r"[\d.]+", color)[:3])
        return colorsys.rgb_to_hls(red, green, blue)[0] * 360

    # --- rules, in order ----------------------------------------------------------------------------------------------

    def who_is_not_signed_in_sees_nothing(self):
        self.i.start("--name", "secret plan", "--", "sleep", "1000")
        self.s.open(self.i.link.split("#")[0])
        self.s.find("#token")
        check("secret plan" not in self.s.text(), "a run is shown to nobody")
        self.s.shoot("login")

    def a_wrong_token_is_refused_with_a_sentence(self):
        self.s.find("#token").send_keys("gdn_wrong", self.s.keys.ENTER)
        until("it says why", lambda: "token" in self.s.text(".problem"))
        self.expected = ["/api/v1/login"]

    def the_link_signs_in_and_its_code_is_gone_from_the_address(self):
        self.s.open(self.i.link)
        until("the instance is shown", lambda: "private instance" in self.s.text("#instance"))
        check("code=" not in self.s.driver.current_url, f"the code is still there: {self.s.driver.current_url}")
        until("it is live", lambda: self.s.text("#connection") == "live")

    def a_run_appears_within_a_second_of_its_start(self):
        self.s.go("live")
        self.s.find("table.runs")
        for n in range(12):
            self.i.start("--workflow", "nightly", "--", "sh", "-c", f"echo {n}; sleep 0.{n}; exit {3 if n % 4 == 3 else 0}")
        # To be killed later, when there is something to be told of it.
        self.deaf = self.i.start("--workflow", "agent", "--name", "refactor the parser", "--grace", "3s", "--max-runtime", "1h", "--", "sh", "-c", DEAF)
        late = []
        for n in range(5):
            run = self.i.start("--workflow", "builder", "--name", f"build {n}", "--max-runtime", "1h", "--", "sh", "-c", f"echo {n}; sleep 1000")
            seen = until(f"{run} is in the table", lambda: self.s.js("return __seen[arguments[0]]", run), 5)
            late.append(seen - self.i.show(run)["started_at_usec"] / 1000)
            until("its name is there", lambda: f"build {n}" in self.s.text(row(run)))
        print(f"    after {', '.join(f'{ms:.0f}' for ms in late)} ms")
        check(max(late) < 1000, f"a run appeared after {max(late):.0f} ms")

    def a_run_that_is_not_ready_in_time_turns_yellow_and_then_red(self):
        self.stuck = self.i.start("--workflow", "lina", "--name", "waits for nobody", "--readiness", "notify",
                                  "--init-timeout", "6s", "--init-action", "warn", "--max-runtime", "2h", "--", "sleep", "1000")
        self.idle = self.i.start("--workflow", "brain", "--readiness", "exec", "--idle-timeout", "9s", "--", "sh", "-c", "sleep 1000 | cat")
        until("it is healthy first", lambda: self.health_shown(self.stuck) == "healthy")
        until("it is warned of", lambda: self.health_shown(self.stuck) == "warning", 15)
        check(30 <= self.hue(f"{row(self.stuck)} .health") <= 60, "a warning is not yellow")
        until("it is critical", lambda: self.health_shown(self.stuck) == "critical", 15)
        hue = self.hue(f"{row(self.stuck)} .health")
        check(hue < 20 or hue > 340, "critical is not red")
        first = self.s.js("return document.querySelector('table.runs tbody tr').dataset.key")
        check(first in (self.stuck, self.idle), "the worst one is not on top")

    def a_run_that_idles_turns_yellow_and_then_red_and_it_is_said_why(self):
        until("it is critical", lambda: self.health_shown(self.idle) == "critical", 40)
        self.s.go(f"run/{self.idle}")
        until("the reason is there", lambda: "idle for" in self.s.text(".banner.is-critical"))
        until("what it waits for is there", lambda: "sleep" in self.s.text("#explanation .explanation"))
        timeline = self.s.text("#timeline")
        check("warning" in timeline and "critical" in timeline, f"the timeline does not tell of both: {timeline}")
        names = [e.text for e in self.s.all("#processes .tree .process")]
        check(any("sleep" in n for n in names) and any("cat" in n for n in names), f"the processes are {names}")
        check(self.s.all("#processes .tree ul li"), "children are not below their parents")

    def changes_of_health_are_said_to_who_cannot_see_them(self):
        self.s.go("")
        run = self.i.start("--workflow", "spoken", "--readiness", "notify", "--init-timeout", "3s", "--init-action", "warn", "--", "sleep", "1000")
        until("it is said", lambda: run in self.s.text("#announce") and "spoken" in self.s.text("#announce"), 20)
        self.i.run_cli("kill", run)

    def a_run_that_waits_for_its_turn_tells_its_place_and_why(self):
        runs = first, second, third = [self.i.start("--workflow", "deploy", "--name", f"deploy {n}", "--readiness", "exec", "--", "sleep", "1000") for n in range(3)]
        why = "1 deploy run is running of 1 allowed"
        self.s.go("")
        waits = f'li[data-key="{third}"]'
        until("the overview tells", lambda: "queued, 2nd of 2" in self.s.text(waits) and why in self.s.text(waits))
        check(first not in self.s.text(".queue"), "who runs is said to wait")
        self.s.shoot("queued")
        self.s.go("live?phase=queued")
        until("the table tells", lambda: "queued, 2nd of 2" in self.s.text(row(third)) and why in self.s.text(row(third)))
        check(not self.s.all(row(first)), "the filter by the phase does not hold")
        self.s.go(f"run/{third}")
        until("its page tells", lambda: "queued, 2nd of 2" in self.s.text(".run-head") and why in self.s.text("#explanation"))
        check("queued" in self.s.text("#timeline") and not self.s.all("#processes .process"), "something of it seems to run")
        check(not self.s.button("Freeze…"), "what is not there can be frozen")
        self.s.shoot("queued-run")
        self.i.run_cli("kill", "--reason", "not needed", second)
        until("who is behind moves up", lambda: "queued, 1st of 1" in self.s.text(".run-head"))
        self.i.run_cli("kill", first)
        until("its turn comes", lambda: "running" in self.s.text(".run-head") and self.s.all("#processes .process"))
        self.s.go("")
        until("nobody waits any more", lambda: self.s.js("return document.querySelector('.queue').closest('section').hidden"))
        self.i.run_cli("kill", third)
        check([self.i.show(run)["outcome"]["kind"] for run in runs] == ["killed"] * 3, "they ended otherwise")

    def what_a_run_is_called_is_text_and_nothing_else(self):
        name, args = f"{SCRIPT} {ESCAPES}", ["sh", "-c", 'echo ready; "$0" heartbeat --status "$1"; exec sleep 1000', self.i.guardian, f"{MARKUP}{ESCAPES}"]
        hostile = self.i.start("--workflow", "hostile", "--name", name, "--readiness", "exec", "--max-runtime", "1h", "--", *args)
        until("its status is known", lambda: self.i.show(hostile)["heartbeats"]["status"])
        self.s.go("live")
        until("its status is in the table", lambda: "<b>bold</b>" in self.s.text(row(hostile)))
        self.inert("the table")
        self.s.shoot("hostile")
        check("\\u{1b}[2J" in self.s.text(row(hostile)) and "\\u{202e}" in self.s.text(row(hostile)), "escapes are not shown as such")
        self.s.go(f"run/{hostile}")
        until("its page is there", lambda: SCRIPT in self.s.text("h1"))
        until("its command is there", lambda: "onerror" in self.s.text("#details"))
        self.inert("its page")
        self.s.click("#audit details summary")
        self.inert("the audit")
        self.i.run_cli("kill", "--reason", f"{SCRIPT}{ESCAPES}", hostile)
        until("its receipt is there", lambda: SCRIPT in self.s.text("#receipt"))
        self.inert("the receipt")
        for page in ("", "history", "alerts"):
            self.s.go(page)
            time.sleep(1)
            self.inert(page or "the overview")
        self.s.go("history")
        until("the reason is in the history", lambda: SCRIPT in self.s.text("table.history"))

    def inert(self, where):
        made = self.s.js("return document.querySelectorAll('main script, main img, main b, main iframe, main [onerror], script:not([src])').length")
        check(made == 0, f"{made} elements were made of text in {where}")
        bad = self.s.js(UNSAFE)
        check(not bad, f"{where} shows characters that steer: {bad}")

    def time_can_be_given_and_a_run_can_be_frozen_and_thawed(self):
        self.s.go(f"run/{self.stuck}")
        until("there are buttons", lambda: self.s.button("Extend…"))
        before = {d["rule"]: d["at_usec"] for d in self.i.show(self.stuck)["deadlines"]}["max_runtime"]
        self.s.button("Extend…").click()
        self.s.js("const s = document.querySelector('dialog select'); s.value = 'max_runtime'; s.dispatchEvent(new Event('change'))")
        self.s.find("dialog input[name=reason]").send_keys("the nightly build is larger", self.s.keys.ENTER)
        until("the dialog is closed", lambda: not self.s.all("dialog"))
        after = {d["rule"]: d["at_usec"] for d in self.i.show(self.stuck)["deadlines"]}["max_runtime"]
        check(abs(after - before - 30 * 60e6) < 1e6, f"it was extended by {(after - before) / 1e6} s")
        until("the audit tells", lambda: "limit_extended" in self.s.text("#audit"))
        for verb, word in (("Freeze", "frozen"), ("Thaw", "thawed")):
            until(f"{verb} is there", lambda: self.s.button(f"{verb}…")).click()
            self.s.find("dialog input[name=reason]").send_keys("to look at it", self.s.keys.ENTER)
            until("it is done", lambda: self.i.show(self.stuck)["frozen"] == (verb == "Freeze"))
            until("it is shown", lambda: ("(frozen)" in self.s.text(".run-head")) == (verb == "Freeze"))

    def kill_with_a_reason_ends_it_and_the_steps_and_the_receipt_are_shown(self):
        pids = until("it runs", lambda: [p["pid"] for p in self.i.show(self.deaf)["processes"]])
        self.s.go(f"run/{self.deaf}")
        self.s.click("#kill")
        field = self.s.find("dialog input[name=reason]")
        self.s.shoot("kill-dialog")
        field.send_keys("superseded by #214")
        self.s.button("Kill", "dialog").click()
        until("the grace is on", lambda: "stopping" in self.s.text(".run-head"), 5)
        until("SIGTERM is shown while it goes on", lambda: self.s.all("[data-step=terminated]"), 5)
        until("it is over", lambda: "killed(superseded by #214" in self.s.text(".run-head"), 15)
        for step in ("intent_recorded", "terminated", "killed", "emptied"):
            self.s.find(f"[data-step={step}]")
        receipt = self.s.text("#receipt")
        for part in ("0 survivors", "graceful", "superseded by #214", "proved by the kernel", "SIGTERM to"):
            check(part in receipt, f"the receipt does not say {part!r}: {receipt}")
        check(not self.s.all("#kill"), "what is over can be killed")
        view = self.i.show(self.deaf)
        check(view["phase"] == "finished" and view["receipt"]["survivors"] == 0, "guardian says something else")
        check("superseded by #214" in view["receipt"]["reason_text"], "the reason is not on record")
        left = [pid for pid in pids if is_there(pid)]
        check(not left, f"processes are left: {left}")
        until("the audit tells", lambda: "run_killed" in self.s.text("#audit"))
        until("what it used is drawn", lambda: len(self.s.all("#graphs path.line")) == 2)
        self.s.shoot("run-killed")

    def a_forced_kill_has_no_grace(self):
        run = self.i.start("--workflow", "agent", "--grace", "1h", "--", "sh", "-c", DEAF)
        self.s.go(f"run/{run}")
        self.s.click("#kill")
        self.s.find("dialog input[value=force]").click()
        self.s.find("dialog input[name=reason]").send_keys("now", self.s.keys.ENTER)
        until("it is over", lambda: "force" in self.s.text("#receipt"), 10)
        check(not self.s.all("[data-step=terminated]"), "it was sent SIGTERM")

    def the_keyboard_suffices(self):
        self.s.go("")
        self.s.js("document.activeElement.blur()")
        self.s.type("gl")
        until("g l leads to the live runs", lambda: self.s.all("table.runs tbody tr"))
        self.s.type("/")
        self.s.type("builder")
        until("only what matches is shown", lambda: all("builder" in r.text for r in self.s.all("table.runs tbody tr")))
        self.s.type(self.s.keys.ESCAPE)
        self.s.type("jj")
        focused = self.s.js("return document.activeElement.closest('tr')?.dataset.key")
        second = self.s.js("return document.querySelectorAll('table.runs tbody tr')[1].dataset.key")
        check(focused == second, "j j does not lead to the second row")
        time.sleep(2.5)
        check(focused == self.s.js("return document.activeElement.closest('tr')?.dataset.key"), "an update took the focus away")
        self.s.type("k", self.s.keys.ENTER)
        until("Enter opens the row", lambda: "#/run/" in self.s.driver.current_url)
        self.s.type("?")
        until("? tells the keys", lambda: "overview" in self.s.text("dialog"))
        self.s.type(self.s.keys.ESCAPE)
        until("Escape closes", lambda: not self.s.all("dialog"))
        self.s.type("gh")
        until("g h leads to the history", lambda: self.s.all("table.history tbody tr"))

    def what_the_past_says_is_counted_and_drawn(self):
        self.s.go("stats")
        until("there are workflows", lambda: self.s.all("section.workflow"))
        card = next(c for c in self.s.all("section.workflow") if c.find_element(self.s.by, "h2").text == "nightly")
        until("its runs are counted", lambda: "12 runs" in card.text and "75 % succeeded" in card.text)
        check("failed 3" in card.text, f"the outcomes are not told: {card.text}")
        for part in ("svg.bars rect.part.succeeded", "svg.bars rect.part.failed", ".share .part.failed", ".quantiles td"):
            check(card.find_elements(self.s.by, part), f"{part} is not drawn")

    def every_page_can_be_read(self):
        pages = {"overview": "", "live": "live", "run": f"run/{self.idle}", "killed": f"run/{self.deaf}", "history": "history", "alerts": "alerts", "statistics": "stats"}
        for name, page in pages.items():
            self.s.go(page)
            time.sleep(1.5)
            if name != "killed":
                self.s.shoot(name)
            for scheme in ("light", "dark"):
                self.s.scheme(scheme)
                poor = self.s.js(CONTRAST)
                check(not poor, f"too little contrast on {name}, {scheme}: {poor[:4]}")
            self.s.scheme("light")
            nameless = self.s.js(NAMELESS)
            check(not nameless, f"controls without a name on {name}: {nameless}")
            check(len(self.s.all("h1")) == 1, f"{name} has not one heading")

    def a_theme_that_was_chosen_stays(self):
        self.s.go("")
        ground = lambda: self.s.js("return getComputedStyle(document.body).backgroundColor")  # noqa: E731
        light = ground()
        self.s.click("#theme")
        self.s.click("#theme")
        dark = ground()
        check(dark != light, "the second theme is not dark")
        self.s.driver.refresh()
        until("it is signed in still", lambda: "private instance" in self.s.text("#instance"))
        check(ground() == dark, "the theme was forgotten")
        self.s.click("#theme")

    def a_lost_instance_is_said_to_be_lost_and_comes_back(self):
        self.s.go("live")
        self.i.die()
        until("it is said", lambda: self.s.js("return !document.getElementById('lost').hidden"), 20)
        self.s.shoot("lost")
        run = self.i.start("--name", "after the crash", "--", "sleep", "1000")
        until("it is live again", lambda: self.s.text("#connection") == "live" and self.s.js("return document.getElementById('lost').hidden"), 30)
        until("what began meanwhile is there", lambda: "after the crash" in self.s.text(row(run)), 10)
        self.expected = ["/api/v1/", "Failed to load resource"]

    def a_session_ends_with_the_server_and_one_signs_in_again(self):
        self.i.stop_serving()
        until("it is said", lambda: self.s.js("return !document.getElementById('lost').hidden"), 20)
        self.i.serve()
        self.s.find("#token", 40)
        self.s.find("#token").send_keys(self.i.token("operator", "ann"), self.s.keys.ENTER)
        until("the same page is there", lambda: self.s.all("table.runs tbody tr"))
        check("ann (operator)" in self.s.text("#who"), "it does not say who is signed in")
        self.expected = ["/api/v1/", "Failed to load resource"]

    def a_viewer_has_no_kill_and_is_refused_one(self):
        self.s.click("#logout")
        self.s.find("#token").send_keys(self.i.token("viewer", "wall"), self.s.keys.ENTER)
        until("the viewer is in", lambda: "wall (viewer)" in self.s.text("#who"))
        self.s.go(f"run/{self.stuck}")
        until("the page is there", lambda: "waits for nobody" in self.s.text("h1"))
        check(not self.s.all("#kill, .actions button"), "a viewer is shown what only an operator may do")
        for path in (f"/api/v1/workflows/local/run/{self.stuck}/kill?force=true", f"/api/v1/runs/{self.stuck}/freeze"):
            status, answer = self.i.post(path, {"reason": "let me"}, self.s.cookie())
            check(status == 403, f"{path} of a viewer is answered with {status}: {answer}")
        check(self.i.show(self.stuck)["phase"] != "finished", "a viewer has ended a run")

    def nothing_is_fetched_from_elsewhere(self):
        self.s.driver.refresh()
        self.s.find("main h1")
        origin = f"http://127.0.0.1:{self.i.port}/"
        foreign = [u for u in self.s.js("return performance.getEntriesByType('resource').map((e) => e.name)") if not u.startswith(origin)]
        check(not foreign, f"fetched from elsewhere: {foreign}")


def missing():
    """The Debian packages that this needs and this host has not."""
    packages = [package for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")) if not shutil.which(program)]
    try:
        import selenium  # noqa: F401
    except ImportError:
        packages.append("python3-selenium")
    return packages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guardian", type=Path, required=True)
    parser.add_argument("--web", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("target/web"))
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="rules to play, whole names; those that sign in are played anyway")
    args = parser.parse_args()
    absent = missing()
    if absent:
        print(f"!!! the test in a browser DID NOT RUN: these packages are missing: {' '.join(absent)}", file=sys.stderr)
        return 1 if os.environ.get("CI") == "true" else 77
    args.out.mkdir(parents=True, exist_ok=True)
    instance = Instance(args.guardian.resolve(), args.web.resolve())
    screen, failures = None, 0
    try:
        instance.run_cli("ps")
        instance.link = instance.serve()
        screen = Screen(args.out)
        tests = Tests(instance, screen)
        names = [n for n, f in vars(Tests).items() if callable(f) and not n.startswith("_") and n not in ("health_shown", "hue", "inert")]
        for name in names:
            if args.only and name not in args.only and "link_signs_in" not in name:
                continue
            tests.expected, began = [], time.monotonic()
            try:
                getattr(tests, name)()
                trouble = screen.trouble(tests.expected)
                check(not trouble, f"the browser complains: {trouble}")
                print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)
            except Exception as e:  # noqa: BLE001 - each rule is told of, then the next is played
                failures += 1
                print(f"FAILED  {name}: {type(e).__name__}: {e}", flush=True)
                screen.driver.save_screenshot(str(args.out / f"failed-{name}.png"))
                screen.trouble()
    finally:
        if screen:
            screen.close()
        instance.close()
    print(f"{failures} failed; pictures to look at are in {args.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
