"""The machine is what the other tests take it for: a whole systemd, not a part of one."""
# needs: none

import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest
import uuid

sys.path.insert(0, "/root/inside/lib")
from guard import must, until  # noqa: E402

CGROUPS = pathlib.Path("/sys/fs/cgroup")
LOGIN = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/run/user/1000"}
VERSIONS = {"bookworm": "252", "trixie": "257"}


def codename():
    lines = pathlib.Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def state_of(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Machine(unittest.TestCase):
    def test_pid_1_is_the_systemd_of_the_suite_and_everything_is_up(self):
        self.assertEqual(os.path.basename(os.readlink("/proc/1/exe")), "systemd")
        version = must("busctl", "get-property", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                       "org.freedesktop.systemd1.Manager", "Version")
        self.assertIn(f's "{VERSIONS[codename()]}', version)
        self.assertEqual(must("systemctl", "is-system-running", "--wait").strip(), "running")

    def test_the_cgroup_tree_is_unified_and_has_the_controllers(self):
        self.assertEqual(must("stat", "-f", "-c", "%T", str(CGROUPS)).strip(), "cgroup2fs")
        there = (CGROUPS / "cgroup.controllers").read_text().split()
        self.assertLessEqual({"cpuset", "cpu", "io", "memory", "pids"}, set(there))

    def test_a_service_gets_the_controllers_it_asks_for(self):
        unit = f"probe-{uuid.uuid4().hex}.service"
        must("systemd-run", "--quiet", f"--unit={unit}", "-p", "MemoryMax=64M", "-p", "TasksMax=7", "-p", "CPUWeight=50", "sleep", "1000")
        self.addCleanup(must, "systemctl", "stop", unit)
        group = CGROUPS / "system.slice" / unit
        self.assertEqual((group / "memory.max").read_text().strip(), str(64 << 20))
        self.assertEqual((group / "pids.max").read_text().strip(), "7")
        self.assertEqual((group / "cpu.weight").read_text().strip(), "50")
        self.assertTrue((group / "cgroup.kill").exists())

    def test_pressure_is_measured(self):
        for resource in ("cpu", "io", "memory"):
            self.assertIn("some avg10=", pathlib.Path("/proc/pressure", resource).read_text())
            self.assertIn("some avg10=", (CGROUPS / "system.slice" / f"{resource}.pressure").read_text())

    def test_the_system_bus_and_polkit_answer(self):
        bus = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"]
        self.assertRegex(must("busctl", "call", *bus, "GetId"), r's "[0-9a-f]{32}"')
        must("busctl", "call", *bus, "GetConnectionUnixUser", "s", "org.freedesktop.systemd1")
        action = "org.freedesktop.systemd1.manage-units"
        must("pkcheck", "--action-id", action, "--process", str(os.getpid()))
        pid = subprocess.Popen(["runuser", "-u", "alice", "--", "sleep", "1000"])
        self.addCleanup(pid.wait)
        self.addCleanup(pid.kill)
        refused = subprocess.run(["runuser", "-u", "alice", "--", "sh", "-c", f"pkcheck --action-id {action} --process $$"], capture_output=True)
        self.assertNotEqual(refused.returncode, 0, "alice may do what only root may")

    def test_the_journal_keeps_messages_and_their_fields(self):
        mark = uuid.uuid4().hex
        subprocess.run(["logger", "--journald"], input=f"MESSAGE=it is kept\nPROBE_MARK={mark}\n", text=True, check=True)
        must("journalctl", "--sync")
        entry = must("journalctl", "--no-pager", "-o", "json", f"PROBE_MARK={mark}")
        self.assertIn('"MESSAGE":"it is kept"', entry)
        self.assertIn('"_UID":"0"', entry)

    def test_alice_has_a_manager_and_a_bus_of_her_own(self):
        self.assertEqual(must("systemctl", "--user", "is-system-running", "--wait", user="alice", env=LOGIN).strip(), "running")
        names = must("busctl", "--user", "list", "--no-legend", user="alice", env=LOGIN)
        self.assertIn("org.freedesktop.systemd1", names)
        unit = f"probe-{uuid.uuid4().hex}.scope"
        group = must("systemd-run", "--user", "--quiet", "--scope", f"--unit={unit}", "cat", "/proc/self/cgroup", user="alice", env=LOGIN)
        self.assertIn(f"/user.slice/user-1000.slice/user@1000.service/app.slice/{unit}", group)
        controllers = (CGROUPS / "user.slice/user-1000.slice/user@1000.service/cgroup.controllers").read_text().split()
        self.assertLessEqual({"memory", "pids"}, set(controllers))

    def test_the_clock_is_right_and_random_numbers_are_not_those_of_the_saved_machine(self):
        self.assertGreater(time.time(), os.stat("/root/inside/machine.py").st_mtime - 1)
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self.assertGreater(time.time(), booted)

    def test_a_process_that_waits_for_a_frozen_disk_cannot_be_killed_until_it_goes_on(self):
        mount = pathlib.Path("/mnt/frozen")
        mount.mkdir(exist_ok=True)
        must("mkfs.ext4", "-q", "-F", "/dev/vdb")
        must("mount", "/dev/vdb", str(mount))
        self.addCleanup(must, "umount", str(mount))
        self.assertTrue(mount.is_mount(), "to freeze the root would hang the machine")
        must("fsfreeze", "-f", str(mount))
        frozen = True
        writer = subprocess.Popen(["sh", "-c", f"echo text >{mount}/file"])
        try:
            # It is in D for a moment too while its own file is read from the disk.
            until("the writer waits for the frozen disk", lambda: "percpu_rwsem" in pathlib.Path(f"/proc/{writer.pid}/wchan").read_text())
            writer.send_signal(signal.SIGKILL)
            time.sleep(1)
            self.assertIsNone(writer.poll(), "it could be killed")
            self.assertEqual(state_of(writer.pid), "D")
            must("fsfreeze", "-u", str(mount))
            frozen = False
            self.assertEqual(writer.wait(30), -signal.SIGKILL)
        finally:
            if frozen:
                must("fsfreeze", "-u", str(mount))
            writer.kill()
            writer.wait()


if __name__ == "__main__":
    unittest.main()
