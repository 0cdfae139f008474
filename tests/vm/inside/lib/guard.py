"""What the service tests inside a machine share: commands as a user, runs as JSON, deadlines, and what is left of a run."""

import json
import os
import pathlib
import subprocess
import time

# What is done many times is done less often.
QUICK = os.environ.get("GUARDIAN_QUICK") == "1"
BUS = ["org.guardian.Guardian1", "/org/guardian/Guardian1", "org.guardian.Guardian1.Manager"]
SLICE = pathlib.Path("/sys/fs/cgroup/guardian.slice")
VERSION = int(subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout.split()[1])


class Done:
    """What a command came to."""

    def __init__(self, result):
        self.status = result.returncode
        self.out = result.stdout.decode(errors="replace")
        self.err = result.stderr.decode(errors="replace")

    def __repr__(self):
        return f"status {self.status}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def as_user(user, *command):
    """The command line that runs a command as a user, with the environment of a login but no session."""
    if user == "root":
        return list(command)
    return ["runuser", "-u", user, "--", *command]


def run(*command, user="root", timeout=120, **options):
    """Runs a command; its output is captured."""
    words = as_user(user, *map(str, command))
    options.setdefault("stdin", subprocess.DEVNULL)
    result = subprocess.run(words, capture_output=True, timeout=timeout, cwd=options.pop("cwd", "/tmp"), **options)
    return Done(result)


def must(*command, **options):
    """Runs a command that must succeed; gives its output."""
    done = run(*command, **options)
    assert done.status == 0, f"{command}: {done}"
    return done.out


def guardian(*arguments, **options):
    """Runs `guardian`."""
    return run("guardian", *arguments, **options)


def detach(*arguments, **options):
    """Starts a detached run; gives its id."""
    return must("guardian", "run", "--detach", *arguments, **options).strip()


def start(*command, user="root", **options):
    """Starts a command and does not wait for it."""
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(as_user(user, *map(str, command)), cwd="/tmp", **{**pipes, **options})


STARTS = """
import dbus, sys
bus = dbus.SystemBus()
manager = dbus.Interface(bus.get_object("org.guardian.Guardian1", "/org/guardian/Guardian1"), "org.guardian.Guardian1.Manager")
never = dbus.UInt64(2**64 - 1)
for _ in range(int(sys.argv[1])):
    print(manager.StartRun({"Command": sys.argv[2:], "GraceUSec": dbus.UInt64(0), "InitTimeoutUSec": never})[0])
"""


def detach_many(count, *command, user="root"):
    """Starts detached runs without grace, by one D-Bus client; gives their ids."""
    return must("/usr/bin/python3", "-c", STARTS, str(count), *command, user=user, timeout=600).split()


def show(run_id, user="root"):
    """Everything about a run."""
    shown = json.loads(must("guardian", "--json", "show", run_id, user=user))
    return shown[0] if isinstance(shown, list) else shown


def runs(user="root", *arguments):
    """The live runs."""
    return json.loads(must("guardian", "--json", "ps", *arguments, user=user))


def until(what, condition, seconds=30):
    """Waits until a condition holds, and gives its value; an error after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what} (last: {value!r})")
        time.sleep(0.05)


def units(run_id=""):
    """The units of runs that systemd has."""
    listed = must("systemctl", "list-units", "--all", "--plain", "--no-legend", f"guardian-run_{run_id.removeprefix('run_')}*")
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def marked(*run_ids):
    """The processes, zombies aside, that carry the id of one of the runs in their environment."""
    found = []
    marks = {f"GUARDIAN_RUN_ID={run_id}".encode() for run_id in run_ids}
    for process in pathlib.Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if marks.intersection((process / "environ").read_bytes().split(b"\0")):
                found.append((int(process.name), (process / "comm").read_text().strip()))
        except OSError:
            pass
    return found


def nothing_left(run_id):
    """Asserts that no process, no cgroup and no unit of a run is left."""
    assert not marked(run_id), marked(run_id)
    until(f"the unit of {run_id} is gone", lambda: not units(run_id))
    left = [str(path) for path in SLICE.rglob(f"*{run_id}*")]
    assert not left, left


def main_pid():
    """The pid of guardiand."""
    return int(must("systemctl", "show", "--value", "-p", "MainPID", "guardiand").strip())


def journal(*matches):
    """Entries of the journal."""
    must("journalctl", "--sync")
    lines = must("journalctl", "--no-pager", "-q", "-o", "json", *matches).splitlines()
    return [json.loads(line) for line in lines]


def cgroup_of(pid):
    """The cgroup that a process is in."""
    return pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def save(name, text):
    """Keeps what a person may want to read."""
    os.makedirs("/root/kept", exist_ok=True)
    pathlib.Path("/root/kept", name).write_text(text)
