"""Many runs at once, what a launch costs, and processes that nobody can kill."""
# limit: 1500
# quick: trixie

import statistics
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403


class Scale(unittest.TestCase):
    def test_five_hundred_runs_at_once(self):
        each = 50 if QUICK else 250
        begun = time.monotonic()
        ids = []
        for user in ["alice", "bob"]:
            ids += detach_many(each, "sleep", "10000", user=user)
        launched = time.monotonic() - begun
        self.assertEqual({r["run_id"] for r in runs()}, set(ids))
        self.assertEqual(len(runs("alice")), each)
        begun = time.monotonic()
        self.assertEqual(guardian("kill", *ids, timeout=300).status, 0)
        killed = time.monotonic() - begun
        print(f"{len(ids)} runs launched in {launched:.0f} s, killed in {killed:.0f} s", file=sys.stderr)
        until("no unit is left", lambda: not units(), 120)
        self.assertEqual(run("pgrep", "-x", "sleep").out.split(), [])

    def test_a_launch_costs_about_what_systemd_run_costs(self):
        # Both as root: systemd asks an ordinary user for a password. By turns: who else is busy is in the way of both.
        commands = ["guardian run --workflow x true".split(), "systemd-run --quiet --scope true".split()]
        took = [[], []]
        for _ in range(11 if QUICK else 31):
            for command, times in zip(commands, took):
                begun = time.monotonic()
                must(*command)
                times.append(time.monotonic() - begun)
        ours, theirs = map(statistics.median, took)
        ratio = ours / theirs
        text = f"guardian run {ours * 1000:.0f} ms, systemd-run --scope {theirs * 1000:.0f} ms: {ratio:.2f} times"
        print(text, file=sys.stderr)
        save("launch.txt", text + "\n")

    def test_a_launch_by_root_leaves_the_bus_alone(self):
        monitor = start("dbus-monitor", "--system", "--profile")
        heard = []
        reading = threading.Thread(target=lambda: heard.extend(line.decode().split("\t") for line in monitor.stdout))
        reading.start()
        until("the monitor listens", lambda: heard)
        # A user's goes over the bus, so it is known that calls are heard.
        must("guardian", "run", "true", user="alice")
        until("a user's launch is heard", lambda: [h for h in heard if h[-1].strip() == "AttachRun"])
        must("guardian", "run", "true")
        must("busctl", "call", *BUS, "ListRuns", "a{sv}", "0")
        until("what came after it is heard", lambda: [h for h in heard if h[-1].strip() == "ListRuns"])
        monitor.kill()
        reading.join()
        monitor.wait()
        members = [h[-1].strip() for h in heard]
        self.assertEqual([members.count(call) for call in ["ReserveRun", "AttachRun", "StartTransientUnit"]], [1, 1, 0])

    def test_a_process_that_cannot_be_killed_is_told_of_until_it_can(self):
        disk = "/dev/vdb"
        if not os.path.exists(disk):
            self.skipTest("there is no second disk")
        must("mkfs.ext4", "-q", "-F", disk)
        os.makedirs("/mnt/stuck", exist_ok=True)
        must("mount", disk, "/mnt/stuck")
        self.addCleanup(run, "umount", "/mnt/stuck")
        must("chmod", "777", "/mnt/stuck")
        self.assertTrue(os.path.ismount("/mnt/stuck"), "to freeze / would hang the machine")
        must("fsfreeze", "-f", "/mnt/stuck")
        try:
            run_id = detach("--grace", "1s", "--", "sh", "-c", "echo x >/mnt/stuck/file", user="alice")
            until("it waits for the disk", lambda: "percpu_rwsem" in run("ps", "-o", "wchan:30=", "-u", "alice").out)
            killing = start("guardian", "kill", run_id)
            view = until("it is told of as unkillable", lambda: (lambda v: v if v["health"] == "critical" else None)(show(run_id)), 120)
            self.assertNotEqual(view["phase"], "finished")
            text = " ".join(reason["text"] for reason in view["health_reasons"])
            self.assertRegex(text, r"\b\d+\b")
            self.assertIn("D", text)
            self.assertIsNone(view["outcome"])
            self.assertTrue([e for e in journal(f"GUARDIAN_RUN_ID={run_id}") if e.get("GUARDIAN_EVENT") == "unkillable"])
        finally:
            must("fsfreeze", "-u", "/mnt/stuck")
        until("it is over once the disk goes on", lambda: show(run_id)["phase"] == "finished")
        killing.communicate(timeout=30)
        nothing_left(run_id)


if __name__ == "__main__":
    unittest.main()
