"""Process trees that do not want to end. Usage: hostile.py KIND [NUMBER], or hostile.py service FILE COMMAND…

Each writes `ready N` to the file `ready` in its working directory, once N processes are there, itself included.
"""

import os
import resource
import signal
import subprocess
import sys
import time


def main():
    kind = sys.argv[1]
    if kind == "service":
        return service(sys.argv[2], sys.argv[3:])
    globals()[kind](int(sys.argv[2]) if len(sys.argv) > 2 else 0)


def ready(count):
    """Tells the test, at once and whole."""
    with open("ready.new", "w") as file:
        file.write(f"ready {count}\n")
    os.rename("ready.new", "ready")


def fork(child):
    """Forks; the child runs `child` and never returns."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    return pid


def sleep():
    while True:
        time.sleep(1000)


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.002)


def ignore_sigterm():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def stubborn(number):
    """A tree of `number` processes besides this one, each the child of the one before; all ignore SIGTERM."""
    ignore_sigterm()

    def next_one(left):
        if left == 0:
            ready(number + 1)
        else:
            fork(lambda: next_one(left - 1))
        sleep()

    next_one(number)


def daemons(number):
    """Daemons as they are made by the book: fork, setsid, fork, descriptors closed. The middle processes exit."""
    ignore_sigterm()
    for i in range(number):

        def middle(i=i):
            os.setsid()

            def daemon():
                null = os.open(os.devnull, os.O_RDWR)
                for fd in range(3):
                    os.dup2(null, fd)
                open(f"daemon.{i}", "w").close()
                sleep()

            fork(daemon)

        os.waitpid(fork(middle), 0)
    for i in range(number):
        wait_for(f"daemon.{i}")
    ready(number + 1)
    sleep()


def bomb(number):
    """A fork bomb held to `number` tasks by RLIMIT_NPROC of a uid that nothing else has. Every process of it forks
    whenever it may, so that one that is killed alone is replaced; all ignore SIGTERM.

    It waits a little after each refusal: what is tested is the kill, not the host's scheduler."""
    ignore_sigterm()
    uid = 1_000_000 + os.getpid()
    os.setgid(uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (number, number))
    os.setuid(uid)
    first = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            os.fork()
        except BlockingIOError:
            if os.getpid() == first and not os.path.exists("ready"):
                ready(number)
            time.sleep(0.05)


def sleepers(number):
    """`number` sleeps, started by this one."""
    for _ in range(number):
        os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ)
    ready(number + 1)
    sleep()


def stopped(_number):
    """A child that has stopped itself. When it is continued it ends at SIGTERM as usual."""
    child = fork(lambda: (os.kill(os.getpid(), signal.SIGSTOP), sleep()))
    os.waitpid(child, os.WUNTRACED)
    ready(2)
    sleep()


def own_cgroup():
    """The directory of this process's cgroup, wherever cgroup2 is mounted."""
    with open("/proc/self/mountinfo") as mounts:
        mount = next(line.split()[4] for line in mounts if " - cgroup2 " in line)
    with open("/proc/self/cgroup") as cgroups:
        path = next(line[3:].rstrip("\n") for line in cgroups if line.startswith("0::"))
    return mount + path


def in_sub_cgroup():
    """A child in a cgroup that was made below our own, three deep."""
    top = own_cgroup()
    sub = os.path.join(top, "sub", "sub", "sub")
    os.makedirs(sub)

    def child():
        with open(os.path.join(sub, "cgroup.procs"), "w") as procs:
            procs.write("0")
        open("moved", "w").close()
        sleep()

    fork(child)
    wait_for("moved")
    return os.path.join(top, "sub")


def sub_cgroup(_number):
    """A child in a cgroup that was made below our own."""
    ignore_sigterm()
    in_sub_cgroup()
    ready(2)
    sleep()


def frozen(_number):
    """The same, and frozen."""
    sub = in_sub_cgroup()
    with open(os.path.join(sub, "cgroup.freeze"), "w") as freeze:
        freeze.write("1")
    deadline = time.monotonic() + 60
    while "frozen 1" not in open(os.path.join(sub, "cgroup.events")).read() and time.monotonic() < deadline:
        time.sleep(0.002)
    ready(2)
    sleep()


def service(sign, command):
    """Runs a command that leaves a daemon behind, which makes the file `sign` when it is up, and stays beside it."""
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    wait_for(sign)
    procs, counts = os.path.join(own_cgroup(), "cgroup.procs"), []
    # A shell that starts up forks for a while: the number counts once it has stood still.
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        time.sleep(0.02)
        with open(procs) as file:
            counts.append(len(file.read().split()))
    ready(counts[-1])
    sleep()


main()
