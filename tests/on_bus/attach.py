"""A client as a Debian user would write it: python3-dbus, a gated child, AttachRun. It prints the run's id, opens the
gate, and lives until it is killed or its standard input is closed. --executed PROGRAM: the child is not gated, and has
executed that by then."""
import os
import signal
import sys
import time

import dbus

bus = dbus.SessionBus() if "--session" in sys.argv else dbus.SystemBus()
gate, opener = os.pipe()
child = os.fork()
if child == 0:
    os.close(opener)
    os.setsid()
    if "--executed" in sys.argv:
        program = sys.argv[sys.argv.index("--executed") + 1]
        os.execv(program, [program, "1000"])
    if not os.read(gate, 1):
        os._exit(125)
    os.execvp("sleep", ["sleep", "1000"])
os.close(gate)
while "--executed" in sys.argv and open(f"/proc/{child}/comm").read().startswith("python"):
    time.sleep(0.01)
guardian = bus.get_object("org.guardian.Guardian1", "/org/guardian/Guardian1")
manager = dbus.Interface(guardian, "org.guardian.Guardian1.Manager")
options = {"Command": dbus.Array(["sleep", "1000"], "s"), "WorkingDirectory": "/", "Readiness": "exec"}
try:
    run, path = manager.AttachRun(dbus.Dictionary(options, "sv"), dbus.types.UnixFd(os.pidfd_open(child)))
except dbus.DBusException as e:
    os.kill(child, signal.SIGKILL)
    print(e.get_dbus_name(), e.get_dbus_message(), flush=True)
    sys.exit(1)
if "--executed" not in sys.argv:
    os.write(opener, b"x")
print(run, flush=True)
sys.stdin.read()
