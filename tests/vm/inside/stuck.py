"""Stuck runs of ordinary users, noticed, explained and ended by the system service, which has no rights but to look and to kill.

All are started one after the other, each stuck in its own way; then each test looks at one of them.
"""
# quick: trixie

import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

PYTHON = "/usr/bin/python3"
HERE = pathlib.Path("/srv/stuck")
PROGRAM = HERE / "stuck.py"
LOCKED = HERE / "locked"
DISK = pathlib.Path("/mnt/dead")
# Warned of after 16 s, ended after 24.
IDLE = ["--readiness", "exec", "--idle-timeout", "24s", "--idle-action", "kill"]
# One that works, and is slow because what it works on does not fit into its memory.
LARGE = HERE / "large"
THRASH = f"import mmap; f = open('{LARGE}'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nwhile True: sum(m[::4096])"
FILL = "import time; x = bytearray({0} << 20); x[::4096] = b'1' * len(x[::4096]); time.sleep(10000)"


def programs(port):
    """The options and the command of each."""
    stuck = [PYTHON, PROGRAM]
    return {
        "mutexes": [*IDLE, "--", *stuck, "mutexes"],
        "pipe": [*IDLE, "--", *stuck, "pipe"],
        "tcp": [*IDLE, "--", "sh", "-c", f"{PYTHON} {PROGRAM} tcp {port}; true"],
        "lock": [*IDLE, "--", "flock", LOCKED, "true"],
        "child": [*IDLE, "--", "sh", "-c", "sleep 10000; true"],
        "stopped": [*IDLE, "--", *stuck, "stopped"],
        "terminal": [*IDLE, "--input-timeout", "6s", "--", *stuck, "terminal"],
        "busy": ["--readiness", "exec", "--spin-timeout", "24s", "--spin-action", "kill", "--", *stuck, "busy"],
        "disk": ["--readiness", "exec", "--idle-timeout", "12s", "--", "sh", "-c", f"echo x >{DISK}/file; sleep 10000"],
        "memory": ["--memory-max", "96M", "--", PYTHON, "-c", FILL.format(84)],
        "oom": ["--memory-max", "64M", "--", "sh", "-c", f'{PYTHON} -c "{FILL.format(200)}"; sleep 10000'],
    }


def causes(port):
    """What is said of each, but of those whose memory is too small."""
    return {
        "mutexes": r"python3 \(pid \d+\) is deadlocked: thread (\d+) waits for a lock that thread (\d+) holds, and thread \2 for one that thread \1 holds \(futex\)",
        "pipe": r"python3 \(pid \d+\) waits to read from a pipe that nobody (writes|else was found to write): it has the other end open itself \(fd 3, read\)",
        "tcp": rf"both processes sleep; python3 \(pid \d+\), for which sh \(pid \d+\) waits, waits on a TCP read from 127\.0\.0\.1:{port} \(fd 3, recvfrom\)",
        "lock": rf"flock \(pid \d+\) waits for a lock on {LOCKED} \(fd 3, flock\) that python3 \(pid {os.getpid()}\) holds",
        "child": r"both processes sleep; sleep \(pid \d+\), for which sh \(pid \d+\) waits, sleeps for 2 h 46 min",
        "stopped": r"python3 \(pid \d+\) is stopped by a signal \(SIGSTOP or alike\) until it is sent SIGCONT",
        "terminal": r"both processes sleep; python3 \(pid \d+\), for which python3 \(pid \d+\) waits, waits to read from the terminal /dev/pts/\d+ \(fd 0, read\)",
        "busy": r"1 of 2 processes runs; python3 \(pid \d+\) computes: \d+ % of a core",
        "disk": r"sh \(pid \d+\) is in a sleep that no signal ends \(state D\): waits in the system call openat \(kernel function percpu_rwsem_wait\)",
    }


class Stuck(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        HERE.mkdir(exist_ok=True)
        shutil.copy("/root/inside/workloads/stuck.py", PROGRAM)
        PROGRAM.chmod(0o755)
        # It takes connections, and says nothing.
        server = socket.create_server(("127.0.0.1", 0))
        cls.addClassCleanup(server.close)
        cls.port = server.getsockname()[1]
        locked = LOCKED.open("w")
        cls.addClassCleanup(locked.close)
        LOCKED.chmod(0o666)
        fcntl.flock(locked, fcntl.LOCK_EX)
        pathlib.Path("/etc/guardian/config.d").mkdir(exist_ok=True)
        pathlib.Path("/etc/guardian/config.d/stuck.toml").write_text('[workflow.thrash]\npressure_max = "5%"\n')
        must("systemctl", "reload", "guardiand")
        cls.write_large()
        cls.freeze_disk()
        cls.addClassCleanup(lambda: [nothing_left(run_id) for run_id in cls.ids.values()])
        cls.addClassCleanup(lambda: guardian("kill", "--force", *cls.ids.values()))
        # It lets go of the disk: nobody could be killed who waits for it.
        cls.addClassCleanup(cls.thaw_disk)
        cls.ids = {}
        for name, words in programs(cls.port).items():
            cls.ids[name] = detach(*words, user="alice")
        cls.told = {name: cls.explained(name, cause) for name, cause in causes(cls.port).items()}

    @classmethod
    def explained(cls, name, cause):
        """What is said of a live run, as soon as that is its cause: for a look on a slow machine a quarter of a second is short."""
        def told():
            done = guardian("explain", cls.ids[name], user="alice")
            cls.said = done.out or done.err
            return re.search(rf"^{cls.ids[name]}: {cause}", done.out)
        try:
            return until(f"{name} is explained", told, 20).group()
        except AssertionError:
            return cls.said

    @classmethod
    def write_large(cls):
        with LARGE.open("wb") as file:
            file.write(bytes(64 << 20))
            os.fsync(file.fileno())
            # The pages count for who reads them first.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @classmethod
    def freeze_disk(cls):
        must("mkfs.ext4", "-q", "-F", "/dev/vdb")
        DISK.mkdir(exist_ok=True)
        must("mount", "/dev/vdb", DISK)
        cls.addClassCleanup(must, "umount", DISK)
        DISK.chmod(0o777)
        assert DISK.is_mount(), "to freeze / would hang the machine"
        must("fsfreeze", "-f", DISK)

    @classmethod
    def thaw_disk(cls):
        must("fsfreeze", "-u", DISK)

    def events(self, run_id, kind):
        rows = map(json.loads, must("guardian", "--json", "audit", run_id, user="alice").splitlines())
        return [row["reason"] for row in rows if row["kind"] == kind]

    def is_warned_of(self, name, rule, cause):
        """The rule says that of a live run."""
        def reason():
            view = show(self.ids[name])
            self.assertNotEqual(view["phase"], "finished", view)
            return next((r["text"] for r in view["health_reasons"] if r["rule"] == rule), None)
        text = until(f"{rule} says something of {name}", reason, 90)
        self.assertRegex(text, cause)
        print(f"{name}: {text}", file=sys.stderr)

    def is_explained(self, name):
        self.assertRegex(self.told[name], causes(self.port)[name])
        print(self.told[name], file=sys.stderr)

    def is_ended(self, name, rule):
        """It was explained, and the rule warned of it and ended it; nothing is left."""
        self.is_explained(name)
        run_id = self.ids[name]
        self.assertEqual(guardian("wait", "--timeout", "90s", run_id, user="alice").status, 124)
        warned = self.events(run_id, "limit_warning")
        word = "spinning" if rule == "spin_timeout" else "idle"
        self.assertRegex("\n".join(warned), rf"^{word} for \d+ s: .+; it is killed in \d+ s, by {rule}$")
        receipt = show(run_id)["receipt"]
        self.assertEqual((receipt["reason"], receipt["survivors"]), (rule, 0))
        self.assertRegex(receipt["explanation"], r"\(pid \d+\)")
        self.assertEqual(len(self.events(run_id, "run_finished")), 1)
        nothing_left(run_id)
        print(f"{warned[0]}\n{receipt['explanation']}", file=sys.stderr)

    def test_two_threads_that_wait_for_each_others_lock(self):
        self.is_ended("mutexes", "idle_timeout")

    def test_a_pipe_that_nobody_writes(self):
        self.is_ended("pipe", "idle_timeout")

    def test_a_server_that_never_answers(self):
        self.is_ended("tcp", "idle_timeout")

    def test_a_lock_that_another_process_holds(self):
        self.is_ended("lock", "idle_timeout")

    def test_a_child_that_is_stuck(self):
        self.is_ended("child", "idle_timeout")

    def test_a_stopped_process(self):
        self.is_ended("stopped", "idle_timeout")

    def test_a_busy_loop(self):
        self.is_ended("busy", "spin_timeout")

    def test_a_terminal_on_which_nobody_types(self):
        self.is_explained("terminal")
        self.is_warned_of("terminal", "input_timeout", r"^waiting for input for \d+ s: ")

    def test_a_disk_that_does_not_answer(self):
        self.is_explained("disk")
        self.is_warned_of("disk", "idle_timeout", r"^idle for \d+ s: ")

    def test_memory_near_its_limit(self):
        self.is_warned_of("memory", "memory", r"^its memory is at 9\d % of memory_max")

    def test_memory_that_is_too_small_for_what_is_done(self):
        # It keeps the disk and a processor busy, so it is not among the others.
        thrash = ["--workflow", "thrash", "--memory-max", "24M", "--", PYTHON, "-c", THRASH]
        self.ids["thrash"] = detach(*thrash, user="alice")
        self.addCleanup(guardian, "kill", "--force", self.ids["thrash"])
        self.is_warned_of("thrash", "pressure", r"^all its processes waited for memory in \d+ % of the last minute")

    def test_a_child_that_the_kernel_has_ended(self):
        self.is_warned_of("oom", "oom", "^the kernel has ended a process of it for want of memory")

    def test_when_all_is_said_those_that_wait_for_somebody_are_left(self):
        # One that waits for input is never idle: what ended the others was long over.
        left = {"terminal", "disk", "memory", "oom"}
        for name in set(self.ids) - left - {"thrash"}:
            self.assertEqual(guardian("wait", "--timeout", "90s", self.ids[name], user="alice").status, 124, name)
        self.assertLessEqual({self.ids[name] for name in left}, {view["run_id"] for view in runs("alice")})
        self.assertEqual(show(self.ids["terminal"])["health"], "warning")


if __name__ == "__main__":
    unittest.main()
