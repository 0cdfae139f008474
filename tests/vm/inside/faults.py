"""What guardiand stands on fails: the journal, the clock, memory. Runs go on, are limited and ended, and nothing is forgotten."""
# quick: trixie

import os
import signal
import sys
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

JOURNAL = ["systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket", "systemd-journald.service"]
DAY = 86400


def serves():
    return guardian("--system", "ps").status == 0


def in_journal(run_id, event):
    return bool(journal(f"GUARDIAN_RUN_ID={run_id}", f"GUARDIAN_EVENT={event}"))


def in_audit(run_id):
    return [json.loads(line)["kind"] for line in must("guardian", "--json", "audit", run_id).splitlines()]


class Faults(unittest.TestCase):
    def setUp(self):
        until("guardiand serves", serves, 60)

    def works(self, user="alice"):
        """A run is launched, limited and ended as ever; gives the ids of two."""
        limited = detach("--max-runtime", "2s", "--grace", "0s", "--", "sleep", "1000", user=user)
        killed = detach("--", "sh", "-c", "setsid sleep 1000 & sleep 1000", user=user)
        self.assertEqual(guardian("kill", killed, user=user).status, 0)
        self.assertEqual(guardian("wait", limited, user=user).status, 124)
        for run_id in [limited, killed]:
            nothing_left(run_id)
            self.assertIn("run_finished", in_audit(run_id))
        return limited, killed

    def test_a_journal_that_is_stopped(self):
        self.addCleanup(must, "systemctl", "start", *JOURNAL)
        run("systemctl", "stop", *JOURNAL)
        before = self.works()
        # Of a journal that is not there an instance that starts cannot know that it will be.
        must("systemctl", "restart", "guardiand")
        until("guardiand serves", serves, 60)
        without = self.works()
        must("systemctl", "start", *JOURNAL)
        after = self.works()
        for run_id in after:
            until("the journal is told again", lambda: in_journal(run_id, "run_finished"))
        for run_id in [*before, *without]:
            self.assertIn("run_finished", in_audit(run_id), "the audit is the record, whatever the journal was told")
        self.assertEqual(guardian("audit", "verify").status, 0)

    def test_a_journal_that_hangs(self):
        journald = int(must("systemctl", "show", "--value", "-p", "MainPID", "systemd-journald").strip())
        os.kill(journald, signal.SIGSTOP)
        self.addCleanup(os.kill, journald, signal.SIGCONT)
        # More than its socket holds.
        ids = detach_many(100 if QUICK else 300, "true")
        until("all of them are over", lambda: not {r["run_id"] for r in runs()}.intersection(ids), 120)
        killed = self.works()
        os.kill(journald, signal.SIGCONT)
        for run_id in [*ids[-3:], *killed]:
            until("what waited is told", lambda: in_journal(run_id, "run_finished"), 60)

    def test_a_clock_that_is_set_back_and_forth(self):
        old = detach("--", "true", user="alice")
        guardian("wait", old, user="alice")
        spared = detach("--max-runtime", "2h", "--heartbeat-timeout", "1h", "--", "sleep", "1000", user="alice")
        skew = 0

        def shift(by):
            nonlocal skew
            time.clock_settime(time.CLOCK_REALTIME, time.time() + by)
            skew += by

        self.addCleanup(lambda: shift(-skew))
        for by in [400 * DAY] if QUICK else [400 * DAY, -800 * DAY, 5 * 3600, 30 * DAY]:
            limited = detach("--max-runtime", "6s", "--grace", "0s", "--", "sleep", "1000", user="alice")
            begun = time.monotonic()
            shift(by)
            # Far beyond the age at which history goes, and a new instance looks at it first of all.
            must("systemctl", "restart", "guardiand")
            until("guardiand serves", serves, 60)
            self.assertEqual(guardian("wait", limited, user="alice").status, 124)
            self.assertGreater(time.monotonic() - begun, 5.5, "ended before its time")
            self.assertEqual(show(limited)["outcome"]["reason"], "max_runtime")
            self.works()
            self.assertEqual(show(spared, user="alice")["phase"], "running")
            self.assertEqual(show(old, user="alice")["outcome"]["text"], "exited(0)", "its history is gone")
        self.assertIn("run_started", in_audit(old))
        self.assertEqual(guardian("audit", "verify").status, 0)
        self.assertEqual(guardian("kill", spared, user="alice").status, 0)

    def test_guardiand_is_out_of_memory(self):
        """Its allocations fail, or the kernel ends it: either way the next one takes over."""
        for exhaust in [
            lambda: must("prlimit", "--pid", str(main_pid()), "--data=0", "--as=0"),
            lambda: must("systemctl", "set-property", "--runtime", "guardiand", "MemoryMax=1M", "MemorySwapMax=0"),
        ]:
            must("systemctl", "reset-failed", "guardiand")
            run_id = detach("--grace", "0s", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000", user="alice")
            limited = detach("--max-runtime", "5s", "--grace", "0s", "--", "sleep", "1000", user="alice")
            pid = main_pid()
            exhaust()
            begun = time.monotonic()
            # Each call asks for memory, the second for more than it has put aside; each is answered or refused, and no
            # launch is half done.
            while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() - begun < 60:
                guardian("--system", "ps", timeout=60)
                guardian("--system", "run", "--detach", "--", "true", *["x" * 100_000] * 8, timeout=60)
            self.assertNotEqual(main_pid(), pid, "it has had memory enough")
            must("systemctl", "set-property", "--runtime", "guardiand", "MemoryMax=infinity", "MemorySwapMax=infinity")
            run("systemctl", "restart", "guardiand")
            until("guardiand serves", serves, 60)
            self.assertTrue(marked(run_id), "the run went down with guardiand")
            self.assertEqual(guardian("wait", limited, user="alice").status, 124)
            self.assertEqual(guardian("kill", run_id, user="alice").status, 0)
            nothing_left(run_id)
            self.assertEqual(guardian("audit", "verify").status, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
