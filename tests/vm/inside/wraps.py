"""Process ids that are used again at once: a host with few of them, which go round a hundred times while runs are killed."""
# limit: 600
# quick: bookworm

import os
import random
import sys
import tempfile
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

WRAPS = 4 if QUICK else 100
PID_MAX = "/proc/sys/kernel/pid_max"
FEW = 800
# Bystanders that come and go: each lives for a moment, under an id that a process of a run may have had before it. The file
# tells how often the ids went round, how many bystanders were ended by a signal, and how many there were.
BYSTANDERS = """
import os, random, sys, time
alive, last, wraps, signalled, seen = 0, 0, 0, 0, 0
told = time.monotonic()
while True:
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        time.sleep(random.random() * 0.2)
        os._exit(0)
    if pid > 0:
        alive, seen, wraps, last = alive + 1, seen + 1, wraps + (pid < last), pid
    while alive:
        done, status = os.waitpid(-1, os.WNOHANG if alive < 25 and pid > 0 else 0)
        if done == 0:
            break
        alive -= 1
        signalled += os.WIFSIGNALED(status)
    if time.monotonic() - told > 0.1:
        told = time.monotonic()
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(f"{wraps} {signalled} {seen}")
        os.rename(sys.argv[1] + ".new", sys.argv[1])
"""
# The ids of its processes are free again before anybody who read them has signalled them.
FORKS = "trap '' TERM; while :; do sleep 0.05 & sleep 0.05; done"
MILD = "while :; do sleep 0.05 & sleep 0.05; done"


class Wraps(unittest.TestCase):
    def test_a_hundred_wraps_of_process_ids_and_nobody_else_is_signalled(self):
        with open(PID_MAX) as file:
            usual = file.read()
        self.addCleanup(self.set_most, usual)
        self.set_most(str(FEW))
        told = os.path.join(tempfile.mkdtemp(), "told")
        bystanders = start("/usr/bin/python3", "-c", BYSTANDERS, told)
        self.addCleanup(bystanders.wait)
        self.addCleanup(bystanders.kill)
        until("the bystanders come and go", lambda: os.path.exists(told))
        kills, crashes = 0, 0
        while True:
            with open(told) as file:
                wraps, signalled, seen = map(int, file.read().split())
            self.assertEqual(signalled, 0, f"a bystander was signalled after {kills} kills and {wraps} wraps")
            self.assertIsNone(bystanders.poll(), "the bystanders are gone")
            if wraps >= WRAPS and kills >= WRAPS // 2:
                break
            options = ["--detach", "--grace", "100ms", "--init-timeout", "off", "--", "sh", "-c"]
            started = [guardian("run", *options, script, user=user) for user, script in [("root", FORKS), ("alice", MILD), ("bob", FORKS)]]
            # On so busy a host systemd may not start a unit in time, which refuses the run.
            ids = [done.out.strip() for done in started if done.status == 0]
            self.assertTrue(all(done.status in (0, 125) for done in started), started)
            if not ids:
                continue
            time.sleep(random.random() * 0.3)
            if random.random() < 0.1:
                run("pkill", "-KILL", "-x", "guardiand")
                crashes += 1
            self.assertEqual(guardian("kill", *(["--force"] if random.random() < 0.3 else []), *ids).status, 0)
            for run_id in ids:
                self.assertEqual(show(run_id)["receipt"]["survivors"], 0)
            self.assertEqual(marked(*ids), [])
            kills += len(ids)
        text = f"{wraps} wraps of process ids, {seen} bystanders, {signalled} signalled; {kills} kills, 0 survivors; {crashes} crashes"
        print(text, file=sys.stderr)
        save("wraps.txt", text + "\n")

    def set_most(self, number):
        with open(PID_MAX, "w") as file:
            file.write(number)


if __name__ == "__main__":
    unittest.main()
