"""Instances of ordinary users: on the session bus with the user's manager, private with and without such a manager."""
# quick: trixie

import os
import signal
import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

MAIN_JOB = ["run", "--max-runtime", "3s", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000"]
UIDS = {"alice": 1000, "bob": 1001, "carol": 1002}


def login(user):
    """The environment of a login of the user."""
    runtime = f"/run/user/{UIDS[user]}"
    return {"PATH": os.environ["PATH"], "HOME": f"/home/{user}", "USER": user, "XDG_RUNTIME_DIR": runtime,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus"}


class Users(unittest.TestCase):
    def use(self, user, *instance, env=None):
        """Commands of this user, to this instance."""
        self.user, self.instance, self.env = user, instance, env or login(user)
        self.addCleanup(self.end)

    def guardian(self, *arguments, **options):
        return guardian(*self.instance, *arguments, user=self.user, env=self.env, **options)

    def must(self, *arguments, **options):
        done = self.guardian(*arguments, **options)
        self.assertEqual(done.status, 0, done)
        return done.out

    def systemctl(self, *arguments):
        return must("systemctl", "--user", *arguments, user=self.user, env=self.env).strip()

    def runs(self):
        return json.loads(self.must("--json", "ps"))

    def show(self, run_id):
        shown = json.loads(self.must("--json", "show", run_id))
        return shown[0] if isinstance(shown, list) else shown

    def end(self):
        live = [run["run_id"] for run in self.runs()]
        if live:
            self.guardian("kill", "--force", *live)

    def main_job(self, place, containment):
        """The main job of the README, and where its process is meanwhile."""
        job = start("guardian", *self.instance, *MAIN_JOB, user=self.user, env=self.env)
        live = until("it is live", lambda: [run for run in self.runs() if run["phase"] == "initializing"])[0]
        run_id, pid = live["run_id"], live["main_process"]["pid"]
        self.assertIn(place.format(run=run_id), cgroup_of(pid))
        err = job.communicate(timeout=60)[1].decode()
        self.assertEqual(job.returncode, 124, err)
        self.assertIn("0 survivors", err)
        view = self.show(run_id)
        self.assertEqual(view["containment"], containment)
        self.assertEqual((view["receipt"]["survivors"], view["receipt"]["proved"]), (0, True))
        self.assertFalse(marked(run_id))

    def detached(self, place):
        """A detached run keeps its status and its output, and can be killed."""
        run_id = self.must("run", "--detach", "--", "sh", "-c", "id -un; exit 7").strip()
        self.assertEqual(self.guardian("wait", run_id).status, 7)
        logs = until("its output is there", lambda: self.must("logs", run_id))
        self.assertEqual(logs.strip(), self.user)
        run_id = self.must("run", "--detach", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000").strip()
        view = until("it runs", lambda: (lambda v: v if v["main_process"] else None)(self.show(run_id)))
        self.assertIn(place.format(run=run_id), cgroup_of(view["main_process"]["pid"]))
        self.assertEqual(self.guardian("kill", run_id).status, 0)
        self.assertEqual(self.guardian("wait", run_id).status, 137)
        self.assertFalse(marked(run_id))

    def outlives(self, pid_of, again):
        """SIGKILL of the instance: runs go on, and statuses of those that end meanwhile are known."""
        stays = self.must("run", "--detach", "--", "sleep", "1000").strip()
        ends = self.must("run", "--detach", "--", "sh", "-c", "sleep 2; exit 42").strip()
        before = {run["run_id"]: run["main_process"] for run in self.runs()}
        os.kill(pid_of(), signal.SIGKILL)
        until("it has ended", lambda: not marked(ends))
        again()
        self.assertEqual(self.guardian("wait", ends).status, 42)
        live = {run["run_id"]: run["main_process"] for run in self.runs()}
        self.assertEqual(live, {stays: before[stays]})
        self.assertEqual(self.guardian("kill", stays).status, 0)
        self.assertEqual(self.guardian("audit", "verify").status, 0)

    def test_the_instance_of_a_user_on_the_session_bus(self):
        self.use("alice", "--user")
        self.systemctl("enable", "--now", "guardiand")
        self.assertEqual(self.systemctl("is-active", "guardiand"), "active")
        self.assertIn("live", self.systemctl("status", "--no-pager", "guardiand"))
        self.assertIn("user@1000.service", self.systemctl("show", "--value", "-p", "ControlGroup", "guardiand"))
        group = "/user.slice/user-1000.slice/user@1000.service/guardian.slice/guardian-default.slice/guardian-{run}"
        self.main_job(group + ".scope", "systemd")
        self.detached(group + ".service")
        self.outlives(lambda: int(self.systemctl("show", "--value", "-p", "MainPID", "guardiand")), lambda: until(
            "it is back", lambda: self.guardian("ps").status == 0))

    def test_the_session_bus_starts_the_instance(self):
        self.use("bob", "--user")
        self.assertEqual(run("systemctl", "--user", "is-active", "guardiand", user="bob", env=self.env).out.strip(), "inactive")
        called = run("busctl", "--user", "call", *BUS, "ListRuns", "a{sv}", "0", user="bob", env=self.env)
        self.assertEqual(called.status, 0, called)
        self.assertEqual(self.systemctl("is-active", "guardiand"), "active")
        # Everything that a user can do without any right on the host.
        self.assertEqual(self.guardian("run", "--", "sh", "-c", "exit 5").status, 5)

    def test_what_is_the_hosts_and_what_is_the_users(self):
        self.use("alice", "--user")
        own = self.must("run", "--detach", "--", "sleep", "1000").strip()
        self.assertNotIn(own, [run["run_id"] for run in runs("alice")], "without options it is the host's instance")
        env = {**self.env, "GUARDIAN_INSTANCE": "user"}
        shown = json.loads(must("guardian", "--json", "ps", user="alice", env=env))
        self.assertEqual([run["run_id"] for run in shown], [own])

    def test_a_private_instance_uses_the_users_manager(self):
        self.use("bob", "--private")
        group = "/user.slice/user-1001.slice/user@1001.service/guardian.slice/guardian-default.slice/guardian-{run}"
        self.main_job(group + ".scope", "systemd")
        self.detached(group + ".service")
        pid = lambda: json.loads(self.must("--json", "doctor"))["instance"]["pid"]  # noqa: E731
        self.outlives(pid, lambda: None)
        doctor = self.must("doctor")
        self.assertIn("systemd", doctor)

    def test_a_private_instance_without_a_manager_contains_all_the_same(self):
        env = {"PATH": os.environ["PATH"], "HOME": "/home/carol", "USER": "carol"}
        self.use("carol", "--private", env=env)
        self.main_job("", "subtree")
        run_id = self.must("run", "--detach", "--", "sh", "-c", "exit 7").strip()
        self.assertEqual(self.guardian("wait", run_id).status, 7)


if __name__ == "__main__":
    unittest.main()
