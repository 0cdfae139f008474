"""Who may do what, asked with busctl, gdbus and a Python client, as several users."""
# quick: bookworm

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

UNKNOWN = "run_000000000000"
RUN = "org.guardian.Guardian1.Run"


def busctl(*words, user="root", **options):
    return run("busctl", *words, user=user, **options)


def path(run_id):
    return f"/org/guardian/Guardian1/run/{run_id}"


def gdbus(method, *arguments, user="root", object_path=BUS[1]):
    call = ["gdbus", "call", "--system", "--dest", BUS[0], "--object-path", object_path, "--method", method]
    return run(*call, *arguments, user=user)


def polkit_says_yes(user, *arguments):
    """Now and then polkit 122 (Debian 12) does not notice the end of a rule's script, and refuses 15 s later."""
    until(f"{user} may {arguments[0]}", lambda: guardian(*arguments, user=user).status == 0, 60)


class Rights(unittest.TestCase):
    def sleeper(self, user="alice"):
        run_id = detach("--", "sleep", "1000", user=user)
        self.addCleanup(guardian, "kill", "--force", run_id)
        return run_id

    def test_what_the_readme_says_about_busctl(self):
        readme = pathlib.Path("/usr/share/doc/guardian/README.md").read_text()
        block = next(b for b in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if b.startswith("busctl call"))
        lines = block.replace("\\\n", " ").splitlines()
        self.assertEqual([re.search(r"StartRun|get-property|KillRun|monitor", line)[0] for line in lines],
                         ["StartRun", "get-property", "KillRun", "monitor"])

        def typed(line, run_id="run_0123456789ab"):
            return ["sh", "-c", line.replace("sudo ", "").replace("run_0123456789ab", run_id)]

        started = run(*typed(lines[0]), user="alice")
        self.assertEqual(started.status, 0, started)
        run_id = started.out.split('"')[1]
        self.addCleanup(guardian, "kill", "--force", run_id)
        self.assertEqual(show(run_id)["workflow"], "nightly")
        phase = run(*typed(lines[1], run_id), user="alice")
        self.assertIn(phase.out.strip(), ['s "initializing"', 's "running"'], phase)
        heard = bytearray()
        monitor = start(*typed("exec " + lines[3]), stderr=subprocess.STDOUT)
        self.addCleanup(monitor.wait)
        self.addCleanup(monitor.terminate)
        os.set_blocking(monitor.stdout.fileno(), False)

        def hears(what):
            heard.extend(monitor.stdout.read() or b"")
            return what in heard

        until("busctl monitor has begun", lambda: hears(b"Monitoring bus message stream."))
        killed = run(*typed(lines[2], run_id), user="alice")
        self.assertEqual(killed.status, 0, killed)
        self.assertEqual(guardian("wait", run_id, user="alice").status, 137)
        for member in [b"Member=KillRun", b"Member=EventAppended"]:
            until(f"{member} is monitored", lambda member=member: hears(member))
        self.assertEqual(show(run_id)["receipt"]["actor"], "alice")
        tree = busctl("tree", BUS[0], user="alice")
        self.assertIn("/org/guardian/Guardian1", tree.out)

    def test_another_user_is_answered_as_if_there_were_no_such_run(self):
        own = self.sleeper()
        attempts = {
            "KillRun": lambda r: busctl("call", *BUS, "KillRun", "sss", r, "graceful", "", user="bob"),
            "ShowRun": lambda r: busctl("call", *BUS, "ShowRun", "s", r, user="bob"),
            "GetRun": lambda r: busctl("call", *BUS, "GetRun", "s", r, user="bob"),
            "WaitRun": lambda r: busctl("call", *BUS, "WaitRun", "st", r, "1000", user="bob"),
            "ExtendRun": lambda r: busctl("call", *BUS, "ExtendRun", "sst", r, "max_runtime", "1000000", user="bob"),
            "FreezeRun": lambda r: busctl("call", *BUS, "FreezeRun", "s", r, user="bob"),
            "RunEvents": lambda r: busctl("call", *BUS, "RunEvents", "stu", r, "0", "10", user="bob"),
            "ReportExit": lambda r: busctl("call", *BUS, "ReportExit", "ssi", r, "exited", "0", user="bob"),
            "Phase": lambda r: busctl("get-property", BUS[0], path(r), RUN, "Phase", user="bob"),
            "Kill": lambda r: busctl("call", BUS[0], path(r), RUN, "Kill", "ss", "force", "", user="bob"),
            "Introspect": lambda r: busctl("introspect", BUS[0], path(r), user="bob"),
            "guardian show": lambda r: guardian("show", r, user="bob"),
            "guardian logs": lambda r: guardian("logs", r, user="bob"),
        }
        for name, attempt in attempts.items():
            with self.subTest(name):
                foreign, unknown = attempt(own), attempt(UNKNOWN)
                self.assertNotEqual(foreign.status, 0, foreign)
                same = lambda done, r: (done.status, done.out.replace(r, "RUN"), done.err.replace(r, "RUN"))
                self.assertEqual(same(foreign, own), same(unknown, UNKNOWN))
        self.assertEqual(runs("bob"), [])
        self.assertIn(show(own)["phase"], ["initializing", "running"])

    def test_root_and_the_group_may(self):
        for user in ["root", "carol"]:
            with self.subTest(user):
                own = self.sleeper()
                if user == "carol":
                    polkit_says_yes(user, "--json", "ps", "--all-users")
                    self.assertIn(own, [r["run_id"] for r in runs(user, "--all-users")])
                    polkit_says_yes(user, "audit")
                polkit_says_yes(user, "kill", own)
                self.assertEqual(show(own)["receipt"]["actor"], user)
        refused = guardian("ps", "--all-users", user="bob")
        self.assertEqual(refused.status, 5, refused)
        self.assertEqual(guardian("audit", user="bob").status, 5)
        for user in ["bob", "carol"]:
            refused = guardian("run", "--detach", "--uid", "root", "--", "id", user=user)
            self.assertIn("start-run", refused.err)

    def test_gdbus_and_python_speak_to_it_too(self):
        own = self.sleeper()
        called = gdbus("org.guardian.Guardian1.Manager.GetRun", own, user="alice")
        self.assertIn(path(own), called.out)
        objects = gdbus("org.freedesktop.DBus.ObjectManager.GetManagedObjects", user="alice", object_path="/org/guardian/Guardian1/run")
        self.assertIn(own, objects.out)
        objects = gdbus("org.freedesktop.DBus.ObjectManager.GetManagedObjects", user="bob", object_path="/org/guardian/Guardian1/run")
        self.assertEqual(objects.out.strip(), "(@a{oa{sa{sv}}} {},)")
        script = (
            "import dbus; bus = dbus.SystemBus(); o = bus.get_object('org.guardian.Guardian1', '/org/guardian/Guardian1')\n"
            "m = dbus.Interface(o, 'org.guardian.Guardian1.Manager')\n"
            "print([str(r['RunID']) for r in m.ListRuns({})])\n"
            f"print(m.KillRun('{own}', 'graceful', 'from python')['RunID'])\n"
            f"print(m.WaitRun('{own}', dbus.UInt64(30000000))['Outcome'][0])\n"
            "try: m.KillRun('" + UNKNOWN + "', 'graceful', '')\n"
            "except dbus.DBusException as e: print(e.get_dbus_name())\n"
        )
        done = run("/usr/bin/python3", "-c", script, user="alice")
        lines = done.out.splitlines()
        self.assertEqual(len(lines), 4, done)
        self.assertIn(own, lines[0])
        self.assertEqual(lines[1:], [own, "killed", "org.guardian.Guardian1.Error.NoSuchRun"])

    def test_signals_about_a_run_reach_nobody_else(self):
        script = (
            "import dbus, dbus.mainloop.glib, sys\nfrom gi.repository import GLib\n"
            "dbus.mainloop.glib.DBusGMainLoop(set_as_default=True); bus = dbus.SystemBus()\n"
            "bus.add_signal_receiver(lambda *a, member=None, path=None: print(member, path, flush=True),"
            " member_keyword='member', path_keyword='path', bus_name='org.guardian.Guardian1')\n"
            "m = dbus.Interface(bus.get_object('org.guardian.Guardian1', '/org/guardian/Guardian1'),"
            " 'org.guardian.Guardian1.Manager'); m.ListRuns({}); print('listening', flush=True)\n"
            "GLib.timeout_add_seconds(15, lambda: sys.exit()); GLib.MainLoop().run()\n"
        )
        if run("/usr/bin/python3", "-c", "import gi").status != 0:
            self.skipTest("python3-gi is not in this machine")
        ears = {user: start("/usr/bin/python3", "-c", script, user=user) for user in ["alice", "bob"]}
        for ear in ears.values():
            self.assertEqual(ear.stdout.readline(), b"listening\n")
        own = self.sleeper()
        guardian("kill", own)
        time.sleep(2)
        heard = {}
        for user, ear in ears.items():
            ear.terminate()
            heard[user] = ear.communicate()[0].decode()
        self.assertIn("RunFinished", heard["alice"])
        self.assertIn(own, heard["alice"])
        self.assertNotIn(own, heard["bob"])
        self.assertIn("EventAppended", heard["bob"])

    def test_without_polkit_others_are_refused_and_root_is_not(self):
        own = self.sleeper()
        must("systemctl", "mask", "--now", "--runtime", "polkit.service")
        self.addCleanup(must, "systemctl", "unmask", "--runtime", "polkit.service")
        begun = time.monotonic()
        self.assertEqual(guardian("kill", own, user="carol").status, 3)
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual(len(runs("alice")), 1)
        self.assertEqual(guardian("kill", own).status, 0)

    def test_polkit_that_hangs_holds_up_nobody_else(self):
        own = self.sleeper()
        must("systemctl", "restart", "polkit.service")
        pid = int(must("systemctl", "show", "--value", "-p", "MainPID", "polkit.service").strip())
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(os.kill, pid, signal.SIGCONT)
        begun = time.monotonic()
        asking = start("guardian", "kill", own, user="carol")
        self.assertEqual(len(runs("alice")), 1)
        self.assertLess(time.monotonic() - begun, 5, "alice had to wait for polkit")
        asking.communicate(timeout=60)
        self.assertEqual(asking.returncode, 3)
        self.assertEqual(guardian("kill", own).status, 0)

    def test_the_name_is_roots_alone(self):
        script = "import dbus; print(dbus.SystemBus().request_name('org.guardian.Guardian1'))"
        self.assertIn("AccessDenied", run("/usr/bin/python3", "-c", script, user="alice").err)


if __name__ == "__main__":
    unittest.main()
