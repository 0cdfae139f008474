"""Reads and ends a run with python3-dbus: its phase, its place in ListRuns and GetManagedObjects, and KillRun."""
import sys

import dbus

NAME, RUN = "org.guardian.Guardian1", "org.guardian.Guardian1.Run"
bus, run = dbus.SystemBus(), sys.argv[1]
manager = dbus.Interface(bus.get_object(NAME, "/org/guardian/Guardian1"), NAME + ".Manager")
path = manager.GetRun(run)
print("phase", bus.get_object(NAME, path).Get(RUN, "Phase", dbus_interface=dbus.PROPERTIES_IFACE))
print("listed", [str(r["RunID"]) for r in manager.ListRuns(dbus.Dictionary({}, "sv"))] == [run])
objects = bus.get_object(NAME, "/org/guardian/Guardian1/run").GetManagedObjects(
    dbus_interface="org.freedesktop.DBus.ObjectManager"
)
print("managed", [str(p) for p in objects] == [path] and str(objects[path][RUN]["RunID"]) == run)
print("mode", manager.KillRun(run, "force", "by hand")["KillMode"])
print("outcome", manager.WaitRun(run, dbus.UInt64(20_000_000))["Outcome"][0])
