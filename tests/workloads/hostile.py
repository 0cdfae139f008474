"""Process trees that do not want to end. Usage: hostile.py KIND [NUMBER], or hostile.py service FILE COMMAND…

Each writes `ready N` to the file `ready` in its working directory, once N processes are there, itself included.
"""

import ctypes
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


def daemonize(daemon):
    """Fork, setsid, fork: `daemon` is run by a process that nothing ties to this one."""

    def middle():
        os.setsid()
        fork(daemon)

    os.waitpid(fork(middle), 0)


def sleep():
    while True:
        time.sleep(1000)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


def wait_for(path):
    wait_until(lambda: os.path.exists(path))


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

    def daemon(i):
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        open(f"daemon.{i}", "w").close()
        sleep()

    for i in range(number):
        daemonize(lambda i=i: daemon(i))
    for i in range(number):
        wait_for(f"daemon.{i}")
    ready(number + 1)
    sleep()


def processes():
    """Every process, as (pid, parent, uid)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
                yield int(name), parent, os.stat(f"/proc/{name}").st_uid
            except OSError:
                pass  # It has ended.


def below(root):
    """The pids of everything below a process."""
    children = {}
    for pid, parent, _ in processes():
        children.setdefault(parent, []).append(pid)
    found, rest = set(), [root]
    while rest:
        for child in children.get(rest.pop(), []):
            if child not in found:
                found.add(child)
                rest.append(child)
    return found


def tasks_of(uid):
    """How many tasks a uid has: what RLIMIT_NPROC counts."""
    count = 0
    for pid, _, owner in processes():
        if owner == uid:
            try:
                count += len(os.listdir(f"/proc/{pid}/task"))
            except OSError:
                pass  # It has ended.
    return count


def bomb(number):
    """A fork bomb held to `number` tasks by RLIMIT_NPROC of a uid that nothing else has; or, where this is an ordinary
    user already, `number` besides what else that has. Every process of it forks whenever it may, so that one that is
    killed alone is replaced; all ignore SIGTERM.

    It waits a little after each refusal: what is tested is the kill, not the host's scheduler."""
    ignore_sigterm()
    if os.getuid() == 0:
        uid = 1_000_000 + os.getpid()
        os.setgid(uid)
        resource.setrlimit(resource.RLIMIT_NPROC, (number, number))
        os.setuid(uid)
    else:
        most = tasks_of(os.getuid()) - 1 + number
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
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
    """The directory of this process's cgroup, wherever cgroup2 is mounted; nothing where it is not."""
    with open("/proc/self/mountinfo") as mounts:
        mount = next((line.split()[4] for line in mounts if " - cgroup2 " in line), "")
    with open("/proc/self/cgroup") as cgroups:
        path = next((line[3:].rstrip("\n") for line in cgroups if line.startswith("0::")), "")
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
    wait_until(lambda: "frozen 1" in open(os.path.join(sub, "cgroup.events")).read())
    ready(2)
    sleep()


def forget_all(sign):
    """Becomes a process that nothing shows to be of this run but who its parents are: another program with an empty
    environment, in another directory. Its arguments are for the test alone, which has to know its own."""
    mark = os.getcwd()
    with open(sign + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(sign + ".new", sign)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.chdir("/")
    os.execve("/bin/sleep", [f"sleep.{mark}", "1000"], {})


def emptied(number):
    """`number` daemons that have emptied their environment and execute another program; all ignore SIGTERM."""
    ignore_sigterm()
    for i in range(number):
        daemonize(lambda i=i: forget_all(f"daemon.{i}"))
    for i in range(number):
        wait_for(f"daemon.{i}")
        with open(f"daemon.{i}") as file:
            comm = f"/proc/{file.read()}/comm"
        wait_until(lambda comm=comm: open(comm).read() == "sleep\n")
    ready(number + 1)
    sleep()


def subreaper(number):
    """A child that is a subreaper itself, to which `number` daemons come; all ignore SIGTERM."""
    ignore_sigterm()

    def child():
        if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
            raise OSError(ctypes.get_errno(), "prctl")
        for i in range(number):
            daemonize(lambda i=i: (open(f"daemon.{i}", "w").close(), sleep()))
        sleep()

    fork(child)
    for i in range(number):
        wait_for(f"daemon.{i}")
    ready(number + 2)
    sleep()


def stops_shim(_number):
    """Stops the shim, which is its parent, again and again; ignores SIGTERM."""
    ignore_sigterm()
    shim = os.getppid()
    os.kill(shim, signal.SIGSTOP)
    ready(1)
    while True:
        os.kill(shim, signal.SIGSTOP)
        time.sleep(0.001)


def kills_shim(number):
    """Kills the shim, which is its parent, and goes on; with `number` processes besides this one. All ignore SIGTERM."""
    ignore_sigterm()
    for _ in range(number):
        fork(sleep)
    ready(number + 1)
    os.kill(os.getppid(), signal.SIGKILL)
    sleep()


def kills_shim_and_forks(number):
    """Kills the shim, and only then makes daemons that have nothing of this run in them, until it is killed."""
    ignore_sigterm()
    ready(1)
    os.kill(os.getppid(), signal.SIGKILL)
    for i in range(number):
        daemonize(lambda i=i: forget_all(f"daemon.{i}"))
    sleep()


def kills_shim_and_bombs(number):
    """Kills the shim, and then is a fork bomb."""
    ready(1)
    os.kill(os.getppid(), signal.SIGKILL)
    bomb(number)


def members():
    """The processes of this run: those of its cgroup, or those below its shim."""
    if os.environ["GUARDIAN_RUN_ID"] in own_cgroup():
        with open(os.path.join(own_cgroup(), "cgroup.procs")) as file:
            return set(map(int, file.read().split()))
    return below(os.getppid())


def service(sign, command):
    """Runs a command that leaves a daemon behind, which makes the file `sign` when it is up, and stays beside it."""
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    wait_for(sign)
    counts = []
    # A shell that starts up forks for a while: the number counts once it has stood still.
    while len(counts) < 10 or len(set(counts[-10:])) > 1:
        time.sleep(0.02)
        counts.append(len(members()))
    ready(counts[-1])
    sleep()


main()
