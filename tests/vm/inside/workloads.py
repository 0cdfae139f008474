"""Hostile process trees in scopes and in services, as root and as a user: each is ended whole, and none in 200 survives."""
# limit: 1500
# quick: bookworm

import os
import pathlib
import random
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

HOSTILE = "/root/inside/workloads/hostile.py"
KINDS = [["stubborn", "20"], ["daemons", "6"], ["sleepers", "100"], ["stopped"], ["subreaper", "4"]]
# Alone: it fills up what its user may have, which the others are part of.
BOMB = ["bomb", "60"]
# What leaves a run that is not kept from it, by having another program start its processes.
LEAVE = ["systemd-run --user --scope", "systemd-run --user (service)", "a container engine"]
# Needs to make a cgroup, as root in a scope can.
FROZEN = ["frozen"]


def engine(path):
    """What a container engine does for whoever may speak to it: starts processes elsewhere. It ends with the machine."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen()

    def serve():
        while True:
            client = listener.accept()[0]
            if number := client.recv(16).decode():
                start("sleep", number, user="alice")
            client.close()

    threading.Thread(target=serve, daemon=True).start()


class Workloads(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shutil.copy(HOSTILE, "/usr/local/lib/hostile.py")

    def place(self):
        directory = tempfile.mkdtemp(dir="/var/tmp")
        os.chmod(directory, 0o777)  # the bomb of root is another user
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def ended(self, kind, run_id, status):
        self.assertEqual(status, 137)
        view = show(run_id)
        self.assertEqual(view["receipt"]["survivors"], 0)
        self.assertTrue(view["receipt"]["proved"])
        least = int(kind[1]) if kind[1:] else 1
        if kind == BOMB and view["user"] != "root":
            # It shares its limit with whatever else that user starts meanwhile; root's is a user of its own.
            least -= 10
        self.assertGreaterEqual(view["receipt"]["terminated"], least)
        nothing_left(run_id)

    def all_ready(self, places):
        """Waits until each is all that it is to be."""
        for place in places:
            until(f"{place} is ready", lambda: os.path.exists(f"{place}/ready"), 120)

    def words(self, kind, place):
        options = ["--grace", "1s", "--name", kind[0], "--cwd", place]
        return [*options, "--", "/usr/bin/python3", "/usr/local/lib/hostile.py", *kind]

    def test_each_is_ended_whole_in_a_scope(self):
        root, alice = [("root", kind) for kind in [*KINDS, FROZEN]], [("alice", kind) for kind in KINDS]
        for batch in [root, alice, [("root", BOMB), ("alice", BOMB)]]:
            jobs = [(user, kind, place := self.place(), start("guardian", "run", *self.words(kind, place), user=user)) for user, kind in batch]
            self.all_ready(job[2] for job in jobs)
            must("guardian", "kill", *(view["run_id"] for view in runs()))
            for user, kind, _, job in jobs:
                with self.subTest(user=user, kind=kind[0]):
                    err = job.communicate(timeout=90)[1].decode()
                    self.ended(kind, re.search(r"run_[0-9a-f]{12}", err)[0], job.returncode)

    def test_each_is_ended_whole_in_a_service(self):
        root, alice = [("root", kind) for kind in KINDS], [("alice", kind) for kind in KINDS]
        for batch in [root, alice, [("root", BOMB), ("alice", BOMB)]]:
            jobs = [(user, kind, place := self.place(), detach(*self.words(kind, place), user=user)) for user, kind in batch]
            self.all_ready(job[2] for job in jobs)
            must("guardian", "kill", *(job[3] for job in jobs))
            for user, kind, _, run_id in jobs:
                with self.subTest(user=user, kind=kind[0]):
                    self.ended(kind, run_id, guardian("wait", run_id, user=user).status)

    def test_two_hundred_kills_leave_no_survivor(self):
        script = (
            "trap '' TERM; for i in 1 2 3; do (setsid sh -c \"trap '' TERM; (setsid sleep 1000 &) ; sleep 1000\" &) ; done;"
            " sleep 1000"
        )
        survivors, killed = 0, 0
        for batch in range(2 if QUICK else 10):
            ids = []
            for user, count in [("root", 7), ("alice", 7), ("bob", 6)]:
                ids += detach_many(count, "sh", "-c", script, user=user)
            time.sleep(random.random())
            force = ["--force"] if batch % 2 else []
            self.assertEqual(guardian("kill", *force, *ids).status, 0)
            killed += len(ids)
            survivors += len(marked(*ids))
            history = {run["run_id"]: run for run in json.loads(must("guardian", "--json", "history", "-n", "1000"))}
            survivors += sum(history[run_id]["receipt"]["survivors"] for run_id in ids)
        print(f"{killed} kills, {survivors} survivors", file=sys.stderr)
        self.assertEqual((killed, survivors), (40 if QUICK else 200, 0))
        until("no unit is left", lambda: not units(), 60)

    def test_escapes_from_a_service_are_closed_or_flagged(self):
        """What a run could use to leave its cgroup, tried from a strict run and from one with `sandbox = "off"`."""
        must("systemctl", "start", "user@1000.service")
        engine("/run/docker.sock")
        ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/docker.sock'); s.send(b'600')"
        bus = "XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus"
        outside = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/escape"
        tries = {
            "setsid and a double fork": "(setsid sleep 600 &)",
            "systemd-run --user --scope": f"{bus} systemd-run --user --scope sleep 600 &",
            "systemd-run --user (service)": f"{bus} systemd-run --user sleep 600",
            "systemd-run over the system bus": "systemd-run --uid=1000 sleep 600",
            "at": "echo sleep 600 | at now",
            "cron": "echo '* * * * * sleep 600' | crontab -",
            "another cgroup": f"mkdir {outside} && echo $$ >{outside}/cgroup.procs && (setsid sleep 600 &)",
            "a container engine": f'/usr/bin/python3 -c "{ask}"',
        }
        table = []
        for sandbox in ["strict", "off"]:
            with open("/etc/guardian/config.toml", "w") as file:
                file.write(f'[workflow.try]\nsandbox = "{sandbox}"\n')
            must("systemctl", "reload", "guardiand")
            tried = {}
            for number, (name, words) in enumerate(tries.items(), 600):
                script = f"{words.replace('600', str(number))}\nsleep 1{number}"
                tried[name] = detach("--workflow", "try", "--", "sh", "-c", script, user="alice"), number

            def sleeps(*numbers):
                return all(run("pgrep", "-u", "alice", "-xf", f"(/usr/bin/|/bin/)?sleep {number}").out for number in numbers)

            # Each has had its try: the last command is there, and what was not waited for has come to something.
            until("all have tried", lambda: sleeps(*(f"1{number}" for _, number in tried.values())), 120)
            until("systemd-run is over", lambda: not run("pgrep", "-u", "alice", "-x", "systemd-run").out, 120)
            if sandbox == "off":
                until("what can leave has left", lambda: sleeps(*(tried[name][1] for name in LEAVE)), 120)
            must("guardian", "kill", *(run_id for run_id, _ in tried.values()))
            for run_id, _ in tried.values():
                guardian("wait", run_id)
            jobs = run("atq", user="alice").out.split("\n")
            asked = "\n".join(run("at", "-c", job.split()[0], user="alice").out for job in jobs if job.strip())
            asked += run("crontab", "-l", user="alice").out
            for name, (run_id, number) in tried.items():
                # What is left of it is outside of its cgroup, which is gone. The receipt names what carries the run's mark.
                left = run("pgrep", "-f", f"sleep {number}", "-u", "alice").out.split()
                named = {str(escapee["pid"]) for escapee in show(run_id)["receipt"]["escapees"]}
                escapes = "flagged" if left and named.issuperset(left) else "escapes"
                table.append((sandbox, name, escapes if left or f"sleep {number}" in asked else "closed"))
                for pid in left:
                    run("kill", "-9", pid)
            for job in filter(str.strip, jobs):
                run("atrm", job.split()[0], user="alice")
            run("crontab", "-r", user="alice")
            run("systemctl", "--user", "stop", "run-*", user="alice", env={**os.environ, "XDG_RUNTIME_DIR": "/run/user/1000"})
        text = "\n".join(f"{sandbox:8} {name:34} {verdict}" for sandbox, name, verdict in table)
        print("\n" + text, file=sys.stderr)
        save("escapes.txt", text + "\n")
        escaped = {sandbox: {row[1] for row in table if row[0] == sandbox and row[2] != "closed"} for sandbox in ["strict", "off"]}
        self.assertEqual(escaped["strict"], set())
        # And these are ways out, for whoever is not kept from them.
        self.assertLessEqual({*LEAVE, "at", "cron"}, escaped["off"])
        # A scope keeps the environment of who asks for it, and with it the run's mark; a service does not.
        self.assertIn(("off", "systemd-run --user --scope", "flagged"), table)


if __name__ == "__main__":
    unittest.main()
