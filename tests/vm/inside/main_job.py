"""An ordinary user's first command after the package is installed, and what the host's own tools show of it."""

import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

JOB = ["run", "--max-runtime", "3s", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]


class MainJob(unittest.TestCase):
    def test_the_run_is_in_its_own_scope_and_ended_whole(self):
        job = start("guardian", *JOB, user="alice")
        live = until("the run is live", lambda: [r for r in runs("alice") if r["phase"] != "starting"])
        run_id = live[0]["run_id"]
        self.assertEqual(units(run_id), [f"guardian-{run_id}.scope"])
        pid = live[0]["main_process"]["pid"]
        self.assertIn(f"guardian.slice/guardian-default.slice/guardian-{run_id}.scope", cgroup_of(pid))
        out, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 124, err)
        self.assertIn(b"0 survivors", err)
        receipt = show(run_id, "alice")["receipt"]
        self.assertEqual((receipt["survivors"], receipt["proved"], receipt["terminated"]), (0, True, 3))
        nothing_left(run_id)

        entries = {e["GUARDIAN_EVENT"]: e for e in journal(f"GUARDIAN_RUN_ID={run_id}") if "GUARDIAN_EVENT" in e}
        for kind in ["run_accepted", "run_started", "limit_warning", "kill_intent", "kill_terminated", "run_finished"]:
            self.assertIn(kind, entries)
        self.assertEqual(entries["run_accepted"]["GUARDIAN_ACTOR"], "alice")
        self.assertEqual(entries["kill_intent"]["GUARDIAN_ACTOR"], "guardian")
        self.assertIn("max_runtime", entries["kill_intent"]["GUARDIAN_REASON"])
        self.assertIn("0 survivors", entries["run_finished"]["MESSAGE"])

    def test_the_journal_explains_and_the_status_says_how_it_is(self):
        run_id = detach("--name", "explained", "--", "sleep", "1000", user="alice")
        status = must("systemctl", "status", "--no-pager", "guardiand")
        self.assertIn("live", status)
        self.assertEqual(guardian("kill", "--reason", "superseded", run_id, user="alice").status, 0)
        explained = must("env", "LC_ALL=C", "journalctl", "-x", "--no-pager", f"GUARDIAN_RUN_ID={run_id}")
        self.assertIn("superseded", explained)
        self.assertGreater(explained.count("--"), 3, "no catalog entry is shown:\n" + explained)

    def test_a_detached_run_is_its_users_and_says_nothing_in_its_unit(self):
        script = "id -un; echo secret=$SECRET; pwd; exit 7"
        run_id = detach("--env", "SECRET=hidden", "--", "sh", "-c", script, user="alice")
        self.assertEqual(guardian("wait", run_id, user="alice").status, 7)
        logs = until("its output is in the journal", lambda: must("guardian", "logs", run_id, user="alice"))
        self.assertEqual(logs.split(), ["alice", "secret=hidden", "/tmp"])
        nothing_left(run_id)
        run_id = detach("--env", "SECRET=hidden", "--", "sh", "-c", "sleep 1000 # word", user="alice")
        shown = must("systemctl", "show", f"guardian-{run_id}.service")
        self.assertNotIn("hidden", shown)
        self.assertNotIn("word", shown)
        guardian("kill", run_id)

    def test_limits_are_properties_and_hold(self):
        run_id = detach("--memory-max", "64M", "--tasks-max", "20", "--cpu-max", "50%", "--", "sleep", "1000", user="alice")
        group = SLICE / "guardian-default.slice" / f"guardian-{run_id}.service"
        self.assertEqual((group / "memory.max").read_text().strip(), str(64 << 20))
        self.assertEqual((group / "pids.max").read_text().strip(), "20")
        self.assertEqual((group / "cpu.max").read_text().split()[0], "50000")
        guardian("kill", run_id)
        eat = "import time; x = bytearray(200 << 20); time.sleep(100)"
        # Again and again: systemd removes a scope at once when it is empty, with what the kernel counted in it.
        for _ in range(5):
            done = guardian("run", "--memory-max", "64M", "--", "python3", "-c", eat, user="alice")
            self.assertEqual(done.status, 137, done)
            self.assertIn("memory", done.err)
        run_id = detach("--memory-max", "64M", "--", "python3", "-c", eat, user="alice")
        self.assertEqual(guardian("wait", run_id, user="alice").status, 137)
        self.assertEqual(show(run_id)["outcome"]["kind"], "oom")

    def test_a_command_that_cannot_be_executed_is_told(self):
        done = guardian("run", "--detach", "--", "no-such-command", user="alice")
        self.assertEqual(done.status, 125, done)
        self.assertIn("no-such-command", done.err)
        done = guardian("run", "--", "no-such-command", user="alice")
        self.assertEqual(done.status, 127, done)
        done = guardian("run", "--detach", "--uid", "bob", "--", "true", user="alice")
        self.assertNotEqual(done.status, 0)
        self.assertIn("start-run", done.err)
        run_id = detach("--uid", "bob", "--", "sh", "-c", "id -un; pwd; echo $HOME")
        self.assertEqual(guardian("wait", run_id).status, 0)
        logs = until("its output is in the journal", lambda: must("guardian", "logs", run_id))
        self.assertEqual(logs.split(), ["bob", "/home/bob", "/home/bob"])

    def test_a_client_that_is_killed_takes_its_run_along(self):
        job = start("guardian", "run", "--grace", "1s", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000")
        run_id = until("the run is live", lambda: [r["run_id"] for r in runs() if r["phase"] == "initializing"])[0]
        job.kill()
        job.wait()
        until("it is over", lambda: show(run_id)["phase"] == "finished")
        nothing_left(run_id)


if __name__ == "__main__":
    unittest.main()
