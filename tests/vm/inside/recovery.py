"""guardiand killed, restarted and stopped, the bus restarted, systemd executed anew: every run ends accounted for."""
# limit: 1500
# quick: trixie

import os
import pathlib
import random
import signal
import sys
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403


def serves():
    return guardian("--system", "ps").status == 0


class Recovery(unittest.TestCase):
    def tearDown(self):
        until("guardiand serves", serves, 60)

    def test_fifty_times_sigkill_in_the_middle_of_a_hundred_runs_and_kills(self):
        must("systemctl", "reset-failed", "guardiand")
        launches, most = (25, 12) if QUICK else (100, 50)
        ids, kills, deaths = [], 0, 0
        begun = time.monotonic()
        while (deaths < most or len(ids) < launches) and time.monotonic() - begun < 1000:
            if len(ids) < launches:
                user = random.choice(["root", "alice"])
                script = random.choice(["sleep 1000", "setsid sleep 1000 & sleep 1000", "trap '' TERM; sleep 1000", "exit 3"])
                done = guardian("run", "--detach", "--grace", "1s", "--init-timeout", "off", "--", "sh", "-c", script, user=user)
                ids += [done.out.strip()] if done.status == 0 else []
            if ids and random.random() < 0.5:
                kills += guardian("kill", "--force", random.choice(ids)).status == 0
            if deaths < most:
                try:
                    pid = main_pid()
                    if pid:
                        os.kill(pid, signal.SIGKILL)
                        deaths += 1
                except ProcessLookupError:
                    pass
                must("systemctl", "reset-failed", "guardiand")
        print(f"{len(ids)} runs, {kills} kills, guardiand killed {deaths} times", file=sys.stderr)
        until("guardiand serves", serves, 60)
        live = [r["run_id"] for r in runs("root")]
        if live:
            self.assertEqual(guardian("kill", "--force", *live, timeout=300).status, 0)
        known = {r["run_id"]: r for r in json.loads(must("guardian", "--json", "history", "-n", "10000"))}
        for run_id in ids:
            self.assertIn(run_id, known, "a run that was acknowledged is not on record")
            self.assertIsNotNone(known[run_id]["outcome"])
            self.assertFalse(marked(run_id))
        until("no unit is left", lambda: not units(), 60)
        self.assertEqual(guardian("audit", "verify").status, 0)
        self.assertEqual(deaths, most)

    def test_statuses_of_services_that_ended_meanwhile_are_known(self):
        wanted = {detach("--", "sh", "-c", f"sleep 2; exit {n}", user="alice"): n for n in [0, 1, 42]}
        term = detach("--", "sh", "-c", "sleep 2; kill -USR1 $$", user="alice")
        must("systemctl", "stop", "guardiand")
        time.sleep(4)
        must("systemctl", "start", "guardiand")
        for run_id, status in {**wanted, term: 128 + signal.SIGUSR1}.items():
            self.assertEqual(guardian("wait", run_id, user="alice").status, status)
            nothing_left(run_id)

    def test_a_service_that_is_kept_though_its_run_is_over_is_given_up_and_no_other(self):
        over, another = (detach("--", "true", user="alice") for _ in range(2))
        unknown = "run_0123456789ab"
        for run_id in [over, another]:
            self.assertEqual(guardian("wait", run_id).status, 0)
            until("its unit is gone", lambda: not units(run_id))
        # As an instance leaves it that dies when the end is on record, and systemd has not been asked yet.
        left = ["systemd-run", "-q", "--slice", "guardian.slice", "-p", "RemainAfterExit=yes"]
        for run_id, command in [(over, ["true"]), (unknown, ["true"]), (another, ["sleep", "1000"])]:
            unit = f"guardian-{run_id}.service"
            self.addCleanup(run, "systemctl", "stop", unit)
            must(*left, "--unit", unit, "--", *command)
        until("it has ended", lambda: "exited" in must("systemctl", "show", "-P", "SubState", f"guardian-{over}.service"))
        must("systemctl", "restart", "guardiand")
        until("what is over is given up", lambda: not units(over))
        self.assertTrue(units(unknown), "it is on no record")
        self.assertEqual(must("systemctl", "show", "-P", "SubState", f"guardian-{another}.service").strip(), "running")

    def test_deadlines_and_graces_go_on_where_they_were(self):
        limited = detach("--max-runtime", "8s", "--", "sleep", "1000", user="alice")
        killed = detach("--grace", "6s", "--", "sh", "-c", "trap '' TERM; echo up; sleep 1000", user="alice")
        until("it ignores SIGTERM", lambda: show(killed)["phase"] == "running")
        begun = time.monotonic()
        killing = start("guardian", "kill", killed)
        until("it is being stopped", lambda: show(killed)["phase"] == "stopping")
        must("systemctl", "kill", "-s", "KILL", "guardiand")
        until("guardiand serves", serves)
        self.assertEqual(guardian("wait", killed).status, 137)
        took = time.monotonic() - begun
        self.assertTrue(5.5 < took < 12, took)
        killing.kill()
        killing.communicate()
        self.assertEqual(guardian("wait", limited).status, 124)
        self.assertEqual(show(limited)["receipt"]["survivors"], 0)

    def test_foreground_runs_outlive_guardiand(self):
        job = start("guardian", "run", "--", "sh", "-c", "sleep 6; exit 5", user="alice")
        until("it is live", lambda: [r for r in runs("alice") if r["phase"] != "starting"])
        must("systemctl", "restart", "guardiand")
        self.assertEqual(job.wait(60), 5, job.stderr.read())

    def test_the_bus_and_systemd_may_start_anew(self):
        run_id = detach("--", "sleep", "1000", user="alice")
        stopped = detach("--", "sleep", "1000", user="alice")
        must("systemctl", "daemon-reexec")
        must("systemctl", "daemon-reload")
        self.assertEqual(len(runs("alice")), 2)
        self.assertEqual(guardian("run", "true").status, 0, "launched as soon as systemd is back")
        # It is listened to again.
        must("systemctl", "stop", f"guardian-{stopped}.service")
        self.assertEqual(until("it is over", lambda: show(stopped)["outcome"])["reason"], "stopped_outside")
        pid = main_pid()
        must("systemctl", "restart", "dbus.service")
        until("guardiand is on the new bus", serves, 60)
        self.assertEqual(main_pid(), pid, "guardiand has to outlive the bus")
        self.assertEqual([r["run_id"] for r in runs("alice")], [run_id])
        other = detach("--", "sleep", "1000", user="alice")
        self.assertEqual(guardian("kill", run_id, other, user="alice").status, 0)

    def test_a_stop_from_outside_is_told_as_such(self):
        service = detach("--", "sleep", "1000", user="alice")
        must("systemctl", "stop", f"guardian-{service}.service")
        self.assertEqual(guardian("wait", service, user="alice").status, 137)
        job = start("guardian", "run", "--", "sleep", "1000", user="alice")
        scope = until("it is live", lambda: runs("alice"))[0]["run_id"]
        until("its scope is there", lambda: units(scope))
        must("systemctl", "stop", f"guardian-{scope}.scope")
        self.assertEqual(job.wait(30), 137)
        for run_id in [service, scope]:
            view = show(run_id)
            self.assertEqual(view["outcome"]["reason"], "stopped_outside")
            self.assertIsNone(view["receipt"])
        run_id = detach("--", "sleep", "1000", user="alice")
        must("systemctl", "stop", "guardian.slice")
        self.assertEqual(until("it is over", lambda: show(run_id)["outcome"])["reason"], "stopped_outside")
        until("guardiand serves with the new slice", lambda: guardian("--system", "run", "--", "true").status == 0, 60)

    def test_a_broken_configuration_is_refused_whole(self):
        path = pathlib.Path("/etc/guardian/config.toml")
        before = path.read_text()
        self.addCleanup(path.write_text, before)
        path.write_text('[defaults]\nmax_runtime = "1s"\ngrace = "soon"\n')
        run("systemctl", "reload", "guardiand")
        checked = guardian("--system", "config", "check")
        self.assertEqual(checked.status, 2)
        self.assertIn("grace", checked.err)
        run_id = detach("--", "sleep", "3", user="alice")
        self.assertEqual(guardian("wait", run_id).status, 0, "half of a broken configuration is in force")


if __name__ == "__main__":
    unittest.main()
