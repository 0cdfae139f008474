"""The packages as an administrator handles them: installed, upgraded with runs alive, removed, purged; the .rpm too."""
# quick: bookworm

import glob
import os
import pathlib
import re
import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

DEB, RPM = glob.glob("/root/guardian_*.deb"), glob.glob("/root/guardian-*.rpm")
CONFIG = pathlib.Path("/etc/guardian/config.toml")
STATE = pathlib.Path("/var/lib/guardian")
APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "--no-install-recommends"]


def active():
    return run("systemctl", "is-active", "guardiand").out.strip()


def ended_whole(user="alice"):
    """The main job."""
    done = guardian("run", "--max-runtime", "2s", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000", user=user)
    assert done.status == 124, done
    assert "0 survivors" in done.err, done


class Packages(unittest.TestCase):
    def setUp(self):
        if run("dpkg-query", "-W", "guardian").status or active() != "active":
            must(*APT, "install", DEB[0])

    def test_an_installed_package_serves_and_has_everything(self):
        self.assertEqual(active(), "active")
        self.assertEqual(must("systemctl", "is-enabled", "guardiand").strip(), "enabled")
        # Enabled by whoever has configured it.
        self.assertEqual(run("systemctl", "is-enabled", "guardian-notify").out.strip(), "disabled")
        must("getent", "group", "guardian")
        for page in ["guardian.1", "guardiand.8", "guardian-web.8", "guardian-notify.8", "guardian-config.toml.5"]:
            found = glob.glob(f"/usr/share/man/man*/{page}*")
            self.assertTrue(found, f"no manual page {page}: {glob.glob('/usr/share/man/man*/guardian*')}")
        for path in ["/usr/share/bash-completion/completions/guardian", "/usr/share/polkit-1/actions/org.guardian.Guardian1.policy",
                     "/usr/lib/systemd/user/guardiand.service", "/usr/share/dbus-1/interfaces/org.guardian.Guardian1.xml"]:
            self.assertTrue(os.path.exists(path), path)
        said = must("systemd-analyze", "security", "--no-pager", "guardiand.service")
        exposure = float(re.search(r"exposure level for guardiand.service: ([\d.]+)", said)[1])
        print(f"exposure {exposure}", file=sys.stderr)
        self.assertLessEqual(exposure, 1.5)
        self.assertEqual(run("systemd-analyze", "--man=no", "verify", "guardiand.service", "guardian.slice").err, "")
        ended_whole()

    def test_an_upgrade_leaves_runs_and_configuration_alone(self):
        changed = CONFIG.read_text() + "\n# ours\n[workflow.kept]\nmax_runtime = \"1h\"\n"
        CONFIG.write_text(changed)
        service = detach("--", "sleep", "1000", user="alice")
        job = start("guardian", "run", "--", "sh", "-c", "echo up; read line; exit 9", user="alice", stdin=-1)
        self.assertEqual(job.stdout.readline(), b"up\n")
        before = {run["run_id"]: run["main_process"] for run in runs()}
        pid = main_pid()
        must(*APT, "install", "--reinstall", DEB[0])
        until("guardiand serves", lambda: guardian("--system", "ps").status == 0)
        self.assertNotEqual(main_pid(), pid, "the old guardiand still serves")
        self.assertEqual({run["run_id"]: run["main_process"] for run in runs()}, before)
        self.assertEqual(CONFIG.read_text(), changed)
        job.communicate(b"\n", timeout=30)
        self.assertEqual(job.returncode, 9)
        self.assertEqual(guardian("kill", service, user="alice").status, 0)
        nothing_left(service)

    def test_remove_leaves_runs_with_a_notice_and_purge_takes_the_state(self):
        run_id = detach("--", "sleep", "1000", user="alice")
        pid = show(run_id)["main_process"]["pid"]
        removed = run(*APT, "remove", "guardian")
        self.assertEqual(removed.status, 0, removed)
        self.assertIn("1 runs are live", removed.out + removed.err)
        self.assertNotEqual(active(), "active")
        self.assertIn(run_id, cgroup_of(pid), "removing the package ended a run")
        self.assertTrue(CONFIG.exists())
        self.assertTrue((STATE / "guardian.db").exists())

        must(*APT, "install", DEB[0])
        until("guardiand serves", lambda: guardian("--system", "ps").status == 0)
        self.assertEqual([run["run_id"] for run in runs()], [run_id])
        self.assertEqual(guardian("kill", run_id, user="alice").status, 0)
        nothing_left(run_id)

        must(*APT, "purge", "guardian")
        self.assertFalse(STATE.exists())
        self.assertFalse(CONFIG.parent.exists())
        left = run("systemctl", "list-unit-files", "guardian*", "--no-legend").out
        self.assertEqual(left.strip(), "")

    def test_the_rpm_installs_serves_and_goes(self):
        self.assertTrue(RPM, "there is no .rpm")
        must(*APT, "purge", "guardian")
        # Debian's own packages are not in rpm's database.
        must("rpm", "--install", "--nodeps", RPM[0])
        self.addCleanup(run, "rpm", "--erase", "--nodeps", "guardian")
        must("systemctl", "enable", "--now", "guardiand")
        until("guardiand serves", lambda: guardian("--system", "ps").status == 0)
        ended_whole()
        CONFIG.write_text(CONFIG.read_text() + "# ours\n")
        run_id = detach("--", "sleep", "1000", user="alice")
        pid = main_pid()
        must("rpm", "--upgrade", "--force", "--nodeps", RPM[0])
        until("guardiand serves", lambda: guardian("--system", "ps").status == 0)
        self.assertNotEqual(main_pid(), pid, "the old guardiand still serves")
        self.assertTrue(CONFIG.read_text().endswith("# ours\n"))
        self.assertEqual([run["run_id"] for run in runs()], [run_id])
        erased = run("rpm", "--erase", "--nodeps", "guardian")
        self.assertEqual(erased.status, 0, erased)
        self.assertIn("1 runs are live", erased.out + erased.err)
        self.assertNotEqual(active(), "active")
        self.assertTrue(marked(run_id))
        must("systemctl", "stop", "guardian.slice")
        self.assertFalse(marked(run_id))


if __name__ == "__main__":
    unittest.main()
