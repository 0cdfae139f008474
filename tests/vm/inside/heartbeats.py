"""What runs say of themselves to the system service: systemd-notify and `guardian heartbeat`, in a scope and in a strict service,
over restarts of guardiand."""
# quick: trixie

import pathlib
import sys
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

SAYS = "echo output; while [ ! -e {0}.go ]; do sleep 0.1; done; systemd-notify --ready --status='step 1' && touch {0}.said; sleep 1000"
BEATS = "n=0; while :; do n=$((n + 1)); guardian heartbeat --status \"beat $n\"; sleep 0.2; done"
FOREIGN = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b"READY=1", sys.argv[1])
"""


def serves():
    return guardian("--system", "ps").status == 0


def said(run_id):
    return show(run_id)["heartbeats"]


class Heartbeats(unittest.TestCase):
    def detach(self, *arguments):
        run_id = detach(*arguments, user="alice")
        self.addCleanup(nothing_left, run_id)
        self.addCleanup(guardian, "kill", "--force", run_id)
        return run_id

    def files(self, name):
        """The beginning of names of files that alice can make and root can see."""
        path = pathlib.Path("/var/tmp", f"{name}-{time.monotonic_ns()}")
        self.addCleanup(lambda: [left.unlink() for left in path.parent.glob(path.name + ".*")])
        return str(path)

    def says_that_it_is_ready(self, run_id, files):
        until("its output does not make it ready", lambda: show(run_id)["phase"] == "initializing")
        pathlib.Path(files + ".go").touch()
        until("systemd-notify has returned", pathlib.Path(files + ".said").exists)
        view = show(run_id)
        self.assertEqual((view["phase"], view["heartbeats"]["status"]), ("running", "step 1"))
        self.assertEqual(view["heartbeats"]["refused"], {"foreign": 0, "flooded": 0, "too_long": 0})

    def test_systemd_notify_in_a_strict_service(self):
        files = self.files("service")
        run_id = self.detach("--readiness", "notify", "--", "sh", "-c", SAYS.format(files))
        self.says_that_it_is_ready(run_id, files)
        text = must("busctl", "get-property", BUS[0], f"{BUS[1]}/run/{run_id}", "org.guardian.Guardian1.Run", "StatusText")
        self.assertEqual(text.strip(), 's "step 1"')

    def test_systemd_notify_in_a_scope(self):
        files = self.files("scope")
        job = start("guardian", "run", "--readiness", "notify", "--", "sh", "-c", SAYS.format(files), user="alice")
        run_id = until("it is live", lambda: [r for r in runs("alice") if r["phase"] != "starting"])[0]["run_id"]
        self.says_that_it_is_ready(run_id, files)
        self.assertEqual(guardian("kill", "--force", run_id).status, 0)
        self.assertEqual(job.wait(30), 137)
        nothing_left(run_id)

    def test_heartbeats_go_on_over_restarts(self):
        options = ["--heartbeat-timeout", "20s", "--heartbeat-action", "kill", "--readiness", "exec"]
        service = self.detach(*options, "--", "sh", "-c", BEATS)
        job = start("guardian", "run", *options, "--", "sh", "-c", BEATS, user="alice")
        scope = until("both are live", lambda: [r for r in runs("alice") if r["run_id"] != service])[0]["run_id"]
        both = [service, scope]
        until("both beat", lambda: all(said(run_id)["total"] > 2 for run_id in both))
        for how in [["systemctl", "restart", "guardiand"], ["systemctl", "kill", "-s", "KILL", "guardiand"]]:
            sockets = [pathlib.Path("/run/guardian", run_id).stat().st_ino for run_id in both]
            must(*how)
            until("guardiand serves", serves, 60)
            before = [said(run_id)["total"] for run_id in both]
            until("both beat again", lambda: all(said(run_id)["total"] > n + 2 for run_id, n in zip(both, before)))
            self.assertEqual([pathlib.Path("/run/guardian", run_id).stat().st_ino for run_id in both], sockets, "kept")
        # Nobody keeps them while it is stopped: they are made again where they were.
        must("systemctl", "stop", "guardiand")
        must("systemctl", "start", "guardiand")
        before = [said(run_id)["total"] for run_id in both]
        until("both beat again", lambda: all(said(run_id)["total"] > n + 2 for run_id, n in zip(both, before)))
        for run_id in both:
            self.assertEqual(show(run_id)["health"], "healthy")
            self.assertTrue(said(run_id)["status"].startswith("beat "))
        self.assertEqual(guardian("kill", "--force", *both).status, 0)
        job.wait(30)
        until("their sockets are gone", lambda: not list(pathlib.Path("/run/guardian").iterdir()))
        kept = must("systemctl", "show", "--value", "-p", "NFileDescriptorStore", "guardiand").strip()
        self.assertEqual(kept, "0", "systemd keeps a socket of a run that is over")

    def test_who_is_not_of_the_run_says_nothing_for_it(self):
        run_id = self.detach("--readiness", "notify", "--", "sleep", "1000")
        socket = f"/run/guardian/{run_id}"
        outside = ["/usr/bin/python3", "-c", FOREIGN, socket]
        self.assertIn("PermissionError", run(*outside, user="bob").err, "another user cannot even send")
        self.assertNotEqual(run("ls", "/run/guardian", user="bob").status, 0, "nor list who runs")
        must(*outside, user="alice")
        must(*outside)
        until("both are counted", lambda: said(run_id)["refused"]["foreign"] == 2)
        self.assertEqual(show(run_id)["phase"], "initializing")

    def test_what_is_late_is_in_the_journal(self):
        beats_once = "guardian heartbeat --status 'step 3'; sleep 1000"
        run_id = self.detach("--heartbeat-timeout", "2s", "--", "sh", "-c", beats_once)
        until("it is critical", lambda: show(run_id)["health"] == "critical")
        entries = until("the journal has it", lambda: journal(f"GUARDIAN_RUN_ID={run_id}", "GUARDIAN_EVENT=heartbeat_late"))
        self.assertEqual(len(entries), 1)
        self.assertIn("its status was: step 3", entries[0]["GUARDIAN_REASON"])


if __name__ == "__main__":
    unittest.main()
