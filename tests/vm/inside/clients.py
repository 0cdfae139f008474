"""guardian-web and guardian-notify as services, which no package enables: with a user each that exists while they run, and with
what polkit grants to these."""
# quick: trixie

import hashlib
import hmac
import http.server
import json
import pathlib
import secrets
import sys
import threading
import unittest
import urllib.error
import urllib.request

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

AT = "http://127.0.0.1:8642"
# What was told, and who told it.
TELL = """[channel.file]
type = "exec"
command = ["/bin/sh", "-c", "id -un >>/var/lib/guardian-notify/told; cat >>/var/lib/guardian-notify/told; echo >>/var/lib/guardian-notify/told"]

[[route]]
events = ["killed"]
channels = ["file"]
"""
# A webhook is signed with its secret; of Slack the whole address is one.
TELL_WITH_SECRETS = """[channel.hook]
type = "webhook"
url = "http://127.0.0.1:{port}/hook"
credential = "hook"
allow_private = true

[channel.chat]
type = "slack"
credential = "slack"
allow_private = true

[[route]]
events = ["killed"]
channels = ["hook", "chat"]
"""


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent; the first that is sent to each address fails there."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Kept)
        self.kept, self.failed = [], set()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Kept(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_first = self.path not in self.server.failed
        self.server.failed.add(self.path)
        if not is_first:
            self.server.kept.append((self.path, self.headers.get("Guardian-Signature"), body))
        self.send_response(500 if is_first else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def ask(path, token=None, body=None):
    """The status, and what was answered."""
    request = urllib.request.Request(AT + path, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Clients(unittest.TestCase):
    def job(self):
        run_id = detach("--name", "a job", "--", "sh", "-c", "echo begun; exec sleep 1000", user="alice")
        self.addCleanup(nothing_left, run_id)
        self.addCleanup(guardian, "kill", "--force", run_id)
        return run_id

    def test_the_web_service_shows_and_ends_the_runs_of_others_by_its_tokens(self):
        self.assertNotEqual(run("systemctl", "is-enabled", "guardian-web.socket").out.strip(), "enabled")
        viewer = must("guardian", "token", "new", "--role", "viewer", "ann").split()[-1]
        operator = must("guardian", "token", "new", "--role", "operator", "ops").split()[-1]
        self.addCleanup(run, "systemctl", "stop", "guardian-web.socket", "guardian-web.service")
        must("systemctl", "start", "guardian-web.socket")
        self.assertEqual(ask("/healthz"), (200, "ok\n"))
        self.assertEqual(ask("/api/v1/runs")[0], 401)
        run_id = self.job()
        status, text = ask("/api/v1/runs", viewer)
        self.assertEqual((status, [r["run_id"] for r in json.loads(text)["runs"]]), (200, [run_id]))
        kill = f"/api/v1/workflows/local/run/{run_id}/kill"
        self.assertEqual(ask(kill, viewer, {"reason": "no"})[0], 403)
        status, text = ask(kill, operator, {"reason": "enough"})
        self.assertEqual(status, 200, text)
        self.assertEqual(json.loads(text)["receipt"]["survivors"], 0)
        receipt = show(run_id)["receipt"]
        self.assertEqual(receipt["actor"], "guardian-web")
        self.assertEqual(receipt["reason_text"], "enough (token ops, guardian-web)")
        self.assertIn("guardian_kills_total", ask("/metrics")[1])
        # It has no network: the sockets came from outside.
        pid = must("systemctl", "show", "-P", "MainPID", "guardian-web").strip()
        self.assertEqual(pathlib.Path(f"/proc/{pid}/net/dev").read_text().count(":"), 1)
        # An upgrade or a crash of guardiand is no end of it.
        must("systemctl", "kill", "-s", "KILL", "guardiand")
        until("it answers again", lambda: ask("/api/v1/runs", viewer)[0] == 200, 60)
        # Who is stopped stays so, however often it is asked for.
        self.addCleanup(must, "systemctl", "start", "guardiand")
        must("systemctl", "stop", "guardiand")
        for path in ["/metrics", "/healthz", "/api/v1/runs"]:
            ask(path, viewer)
        self.assertIn("guardian_up 0", ask("/metrics")[1])
        self.assertEqual(run("systemctl", "is-active", "guardiand").out.strip(), "inactive")

    def test_who_has_configured_notifications_is_told_of_a_kill(self):
        pathlib.Path("/etc/guardian/notify.toml").write_text(TELL)
        self.addCleanup(pathlib.Path("/etc/guardian/notify.toml").unlink)
        self.addCleanup(run, "systemctl", "stop", "guardian-notify")
        must("guardian-notify", "--check-config")
        must("systemctl", "start", "guardian-notify")
        run_id = self.job()
        must("guardian", "kill", "--reason", "enough", run_id)
        told = pathlib.Path("/var/lib/private/guardian-notify/told")
        text = until("it is told", lambda: told.exists() and run_id in told.read_text() and told.read_text(), 60)
        self.assertTrue(text.startswith("guardian-notify\n"), text)

    def test_secrets_of_channels_are_credentials_of_the_unit_and_nowhere_else(self):
        receiver = Receiver()
        self.addCleanup(receiver.server_close)
        self.addCleanup(receiver.shutdown)
        key, token = secrets.token_hex(16), secrets.token_hex(16)
        files = {
            "/etc/guardian/notify.toml": TELL_WITH_SECRETS.format(port=receiver.server_port),
            "/etc/guardian/secrets/hook": key + "\n",
            "/etc/guardian/secrets/slack": f"http://127.0.0.1:{receiver.server_port}/services/{token}\n",
            "/etc/systemd/system/guardian-notify.service.d/secrets.conf": "[Service]\nLoadCredential=hook:/etc/guardian/secrets/hook\n"
                                                                          "LoadCredential=slack:/etc/guardian/secrets/slack\n",
        }
        self.addCleanup(must, "systemctl", "daemon-reload")
        for path, text in files.items():
            path = pathlib.Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            self.addCleanup(path.unlink)
            if path.parent.name == "secrets":
                # For root's eyes: the service's user could not read it.
                path.parent.chmod(0o700)
                path.chmod(0o600)
        must("systemctl", "daemon-reload")
        self.addCleanup(run, "systemctl", "stop", "guardian-notify")
        must("systemctl", "restart", "guardian-notify")
        run_id = self.job()
        must("guardian", "kill", "--reason", "enough", run_id)
        until("both are told, after a failure each", lambda: len({path for path, *_ in receiver.kept}) == 2, 60)
        kept = {path: (signature, body) for path, signature, body in receiver.kept}
        signature, body = kept["/hook"]
        at, mac = (part.split("=")[1] for part in signature.split(","))
        self.assertEqual(mac, hmac.new(key.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest())
        self.assertIn(run_id, body.decode())
        self.assertIn(run_id, kept[f"/services/{token}"][1].decode())

        said = must("journalctl", "--sync") + must("journalctl", "--no-pager", "-q", "-o", "export", "-u", "guardian-notify")
        self.assertIn("500", said, "the failures are told")
        pid = must("systemctl", "show", "-P", "MainPID", "guardian-notify").strip()
        places = {
            "the journal": must("journalctl", "--no-pager", "-q", "-o", "export").encode(),
            "systemctl show": must("systemctl", "show", "guardian-notify").encode(),
            "systemctl cat": must("systemctl", "cat", "guardian-notify").encode(),
            "the environment": pathlib.Path(f"/proc/{pid}/environ").read_bytes(),
            "the arguments": pathlib.Path(f"/proc/{pid}/cmdline").read_bytes(),
        }
        for state in ["/var/lib/private/guardian-notify", "/var/lib/guardian"]:
            found = {str(path): path.read_bytes() for path in pathlib.Path(state).rglob("*") if path.is_file()}
            self.assertTrue(any(path.endswith(".db") for path in found), found.keys())
            places.update(found)
        for place, text in places.items():
            for secret in [key, token]:
                self.assertNotIn(secret.encode(), text, f"a secret is in {place}")


if __name__ == "__main__":
    unittest.main()
