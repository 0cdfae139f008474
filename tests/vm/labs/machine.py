"""Machines: QEMU with an image's systemd in it, emulated, so neither root nor /dev/kvm is needed.

    with Machine.restore("trixie") as machine:      # two seconds; its disk is lost with it
        machine.put({"/root/file": "text", "/root/tools": Path("tools")})
        done = machine.run("systemctl status")      # as root; Failed unless check=False
    with Machine.boot("bookworm") as machine:       # half a minute; a disk of its own
        machine.power_cut()
        machine.start()                             # the same disk

What is restored was saved once, when a freshly booted machine had become calm: its memory in a file, its disk as an
overlay over the image's. A machine has a directory below target/vm, with its disk, QEMU's sockets and its console; QEMU
dies with the thread that started it, and so with its process. The protocol of the agent in the machine is described in image/agent.
"""

import atexit
import contextlib
import fcntl
import hashlib
import io
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import weakref
from pathlib import Path

from . import image

BOOT_TIMEOUT = 300
SLOWEST_PUT = 100_000  # bytes a second, on a busy host
CONSOLE_LINES = 25
CALM = """
sync
for n in $(seq 120); do
  # On a busy host it never is as calm as that.
  [ "$n" -le 60 ] && most=0 || most='[0-9]'
  if ! systemctl list-jobs --no-legend | grep -q . && grep -q "^some avg10=$most\\." /proc/pressure/cpu; then exit 0; fi
  sleep 1
done
cat /proc/pressure/cpu; systemctl list-jobs; exit 1
"""
QEMU = "qemu-system-x86_64"
# QEMU translates code for the address that it is at: without norandmaps that of each program anew each time it is executed,
# which makes everything half as fast. The time stamp counter is the one clock that programs read without a system call.
KERNEL = "console=ttyS0 quiet psi=1 no_timer_check panic=1 norandmaps clocksource=tsc tsc=reliable"


class Failed(Exception):
    """A command in a machine failed or took too long."""

    def __init__(self, command, done):
        how = "its time was over" if done.status == 124 else f"status {done.status}"
        super().__init__(f"in the machine: {command}: {how}\n{done.output}")
        self.done = done


class Dead(Exception):
    """The machine did not come up, or is no longer there."""


class Done:
    """What a command in a machine came to: its status (124: its time was over) and its output, with standard error."""

    def __init__(self, status, data):
        self.status, self.data = status, bytes(data)

    @property
    def output(self):
        return self.data.decode(errors="replace")

    def __repr__(self):
        return f"Done({self.status}, {self.output!r})"


class Machine:
    _open = weakref.WeakSet()

    def __init__(self, directory, suite, mem=1024, smp=2, disk=None, durable=True, owner=None):
        self.directory, self.suite, self.mem, self.smp, self.disk = Path(directory), suite, mem, smp, disk
        self.durable, self.owner = durable, owner
        self.console = self.directory / "console"
        self._qemu = self._agent = None

    # --- how there comes to be one

    @classmethod
    def restore(cls, suite, mem=1024, smp=2, disk=None, own_disk=False, state=None):
        """A machine as it was when it had just booted, or as it was `prepared`; `disk`, such as "64M", gives it a second
        one, /dev/vdb.

        What it writes is lost with the power, unless it has an own disk: that makes its writes slower.
        """
        return cls._new(suite, mem, smp, disk, own_disk, state or saved(suite, mem, smp))

    @classmethod
    def boot(cls, suite, mem=1024, smp=2, disk=None):
        """A machine of the untouched image with a disk of its own, once systemd has started everything."""
        return cls._new(suite, mem, smp, disk, True, None)

    @classmethod
    def named(cls, name):
        """The machine that `lab start` has left running, or None."""
        directory = image.HOME / "named" / name
        try:
            return cls(directory, **json.loads((directory / "machine.json").read_text()))
        except FileNotFoundError:
            return None

    @classmethod
    def name(cls, name, suite, mem=1024, smp=2, disk=None):
        """Restores a machine with an own disk that stays when this process ends."""
        state = saved(suite, mem, smp)
        machine = cls(image.HOME / "named" / name, suite, mem, smp, disk)
        machine.directory.mkdir(parents=True)
        with machine._closed_on_error():
            machine._make_disks(state / "disk.qcow2", "qcow2")
            kept = dict(suite=suite, mem=mem, smp=smp, disk=disk)
            (machine.directory / "machine.json").write_text(json.dumps(kept))
            machine._restore(state)
        return machine

    @classmethod
    def _new(cls, suite, mem, smp, disk, durable, state):
        base = image.ensure(suite)
        directory, owner = new_directory()
        machine = cls(directory, suite, mem, smp, disk, durable, owner)
        cls._open.add(machine)
        with machine._closed_on_error():
            if state:
                machine._make_disks(state / "disk.qcow2", "qcow2")
                machine._restore(state)
            else:
                machine._make_disks(base / "root.ext4", "raw")
                machine.start()
        return machine

    @contextlib.contextmanager
    def _closed_on_error(self):
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _make_disks(self, base, form):
        create = ["qemu-img", "create", "-q", "-f"]
        subprocess.run([*create, "qcow2", "-F", form, "-b", base, self.directory / "disk.qcow2"], check=True)
        if self.disk:
            subprocess.run([*create, "raw", self.directory / "second.raw", self.disk], check=True)

    # --- power

    def start(self, timeout=BOOT_TIMEOUT):
        """Boots from its disk; returns when systemd has started everything."""
        if not self.durable:
            raise Dead("this machine was restored without own_disk=True: there is nothing to boot from")
        state = self._boot(timeout)
        if state != "running":
            failed = self.run("systemctl --failed --no-legend; systemctl list-jobs", check=False).output
            raise Dead(f"{self.suite} came up {state!r}:\n{failed}{self._console_tail()}")

    def _boot(self, timeout):
        """Boots, and once more where the kernel dies of it: one that patches its own code while the other processor runs it
        (`Oops: int3`) does so now and then without KVM. Says what systemd came to."""
        for last in (False, True):
            self._power_on()
            try:
                wait = "systemctl is-system-running --wait"
                return self.run(wait, timeout=timeout, check=False, patience=timeout).output.strip()
            except Dead as dead:
                if last or "Kernel panic" not in str(dead):
                    raise
                self.power_cut()

    def power_cut(self):
        """QEMU is gone from one moment to the next, and with it what the machine has not written through to its disk."""
        self._hang_up()
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        elif pid := self._pid():
            os.kill(pid, signal.SIGKILL)
            while self._pid():
                time.sleep(0.01)

    def _hang_up(self):
        if self._agent is not None:
            self._agent.link.close()
            self._agent = None

    def is_on(self):
        return self._qemu.poll() is None if self._qemu is not None else self._pid() is not None

    def _pid(self):
        """QEMU's, whoever started it. The number in the file may be another process's by now."""
        try:
            pid = int((self.directory / "pid").read_text())
            ours = os.path.samefile(f"/proc/{pid}/cwd", self.directory)
            return pid if ours and QEMU in Path(f"/proc/{pid}/cmdline").read_text() else None
        except (FileNotFoundError, ProcessLookupError):
            return None

    def close(self):
        """Ends the machine, if that has not been done, and removes its directory."""
        self.power_cut()
        Machine._open.discard(self)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.owner is not None:
            os.close(self.owner)
            self.owner = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _power_on(self, incoming=False):
        if self.is_on():
            raise Dead("the machine is on already")
        base = image.ensure(self.suite)
        cache = "writeback" if self.durable else "unsafe"
        words = [QEMU, *hardware(self.mem, self.smp),
                 "-kernel", base / "vmlinuz", "-initrd", base / "initrd", "-append", KERNEL,
                 # In its working directory: the path of a socket may only have 107 bytes.
                 "-chardev", "file,id=console,path=console,append=on", "-serial", "chardev:console",
                 "-chardev", "socket,id=agent,path=agent,server=on,wait=off",
                 "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=lab",
                 "-qmp", "unix:qmp,server=on,wait=off",
                 "-drive", f"file=disk.qcow2,format=qcow2,if=virtio,cache={cache}"]
        if self.disk and not incoming:
            words += ["-drive", f"file=second.raw,format=raw,if=virtio,cache={cache}"]
        if incoming:
            words += ["-incoming", "defer"]
        if self.owner is not None:
            words = ["setpriv", "--pdeathsig", "KILL", *words]
        for name in ("agent", "qmp"):
            (self.directory / name).unlink(missing_ok=True)
        with open(self.directory / "qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(words, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          start_new_session=True)
        (self.directory / "pid").write_text(str(self._qemu.pid))

    def _restore(self, state):
        self._power_on(incoming=True)
        with Monitor(self) as monitor:
            monitor.ask("migrate-incoming", uri="exec:cat " + shlex.quote(str(state / "memory")))
            monitor.until("query-status", "paused", unless=("internal-error", "shutdown"))
            if self.disk:
                # What was saved has no such disk: it is plugged in, as one is into a machine that runs.
                cache = {"no-flush": not self.durable}
                monitor.ask("blockdev-add", **{"node-name": "second", "driver": "raw", "cache": cache,
                                               "file": {"driver": "file", "filename": "second.raw"}})
            monitor.ask("cont")
            if self.disk:
                monitor.ask("device_add", driver="virtio-blk-pci", drive="second", id="second")
        self._request("wake", secrets.token_bytes(64), 60, now=time.time())
        if self.disk:
            self.run("until [ -b /dev/vdb ]; do sleep 0.05; done; udevadm settle", timeout=30)

    def save(self, into):
        """Writes the memory of a machine to a file, at a moment whose disk is kept too; ends the machine."""
        with Monitor(self) as monitor:
            monitor.ask("stop")
            monitor.ask("migrate", uri="exec:cat >" + shlex.quote(str(into / "memory")))
            monitor.until("query-migrate", "completed", unless=("failed", "cancelled"))
            monitor.ask("quit")  # and not SIGKILL: the overlay has to be whole
        self._qemu.wait()
        shutil.move(self.directory / "disk.qcow2", into / "disk.qcow2")

    # --- what is done in it

    def run(self, command, user="root", timeout=120, check=True, echo=None, patience=30):
        """Runs a line of bash (or a list of words); gives a Done, or raises Failed.

        It is in a session of its own, without terminal and without input; daemons that it leaves stay. `echo` is called
        with each piece of output when it comes.
        """
        line = command if isinstance(command, str) else shlex.join(map(str, command))
        done = self._request("run", line.encode(), timeout + patience, echo, user=user or "root", timeout=timeout)
        if check and done.status:
            raise Failed(line if len(line) < 200 else line[:200] + " …", done)
        return done

    def put(self, files):
        """Writes files, each a path in the machine and what is there: bytes, text, or the Path of a file or directory."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for target, content in files.items():
                name = str(target).lstrip("/")
                if isinstance(content, Path):
                    tar.add(content, name, filter=as_root)
                else:
                    data = content.encode() if isinstance(content, str) else content
                    member = tarfile.TarInfo(name)
                    member.size, member.mtime = len(data), time.time()
                    tar.addfile(member, io.BytesIO(data))
        data = archive.getvalue()
        done = self._request("put", data, 120 + len(data) / SLOWEST_PUT)
        if done.status:
            raise Failed("put " + " ".join(map(str, files)), done)

    def get(self, path):
        """The bytes of a file in the machine."""
        return self.run(["cat", path]).data

    def fetch(self, path, into):
        """Copies a file or directory of the machine into a directory here; of "directory/.", what is in it."""
        parent, name = os.path.split(os.path.join("/root", str(path).rstrip("/")))
        done = self.run(["tar", "-c", "-C", parent, name])
        Path(into).mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-x", "--no-same-owner", "-C", into], input=done.data, check=True)

    def journal(self, *matches):
        """The journal of this boot, or what of it matches."""
        self.run("journalctl --sync", check=False)
        return self.run(["journalctl", "--boot", "--no-pager", "--output=short-precise", *matches], check=False).output

    def _request(self, do, data, seconds, echo=None, **more):
        """One request to the agent; raises Dead if the whole answer does not come within the seconds."""
        identity, deadline = secrets.token_hex(8), time.monotonic() + seconds
        header = json.dumps(dict(id=identity, do=do, size=len(data), **more)).encode() + b"\n"
        output = bytearray()
        try:
            if self._agent is None:
                self._agent = Stream(self._connect("agent", deadline))
            answer = self._agent
            answer.deadline = deadline
            answer.send(header + data)
            while answer.line() != b"answer " + identity.encode():
                pass
            while True:
                kind, _, number = answer.line().partition(b" ")
                if kind == b"end":
                    return Done(int(number), output)
                part = answer.take(int(number))
                output += part
                if echo:
                    echo(part)
        except (OSError, EOFError) as error:
            self._hang_up()
            what = f"no answer: {error or type(error).__name__}" if self.is_on() else "it is off"
            said = output.decode(errors="replace")[-2000:]
            raise Dead(f"{self.suite}: {what}; it said: {said!r}{self._console_tail()}") from None

    def _connect(self, name, deadline):
        """A connection to one of QEMU's sockets, which may not be there yet."""
        directory = os.open(self.directory, os.O_PATH)
        patience = min(deadline, time.monotonic() + 60)
        try:
            while True:
                link = socket.socket(socket.AF_UNIX)
                link.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    link.connect(f"/proc/self/fd/{directory}/{name}")
                    return link
                except OSError:
                    link.close()
                    if not self.is_on() or time.monotonic() > patience:
                        raise
                time.sleep(0.02)
        finally:
            os.close(directory)

    def _console_tail(self):
        lines = []
        for name in ("qemu.log", "console"):
            with contextlib.suppress(FileNotFoundError):
                lines += (self.directory / name).read_text(errors="replace").splitlines()
        return "".join("\n  | " + line for line in lines[-CONSOLE_LINES:])


class Stream:
    """Lines and bytes from a socket, and bytes to it, until a deadline."""

    def __init__(self, link):
        self.link, self.deadline, self.got = link, 0, bytearray()

    def send(self, data):
        self.link.settimeout(max(0.01, self.deadline - time.monotonic()))
        self.link.sendall(data)

    def line(self):
        while (end := self.got.find(b"\n")) < 0:
            self._more()
        line = bytes(self.got[:end])
        del self.got[:end + 1]
        return line

    def take(self, size):
        while len(self.got) < size:
            self._more()
        part = bytes(self.got[:size])
        del self.got[:size]
        return part

    def _more(self):
        self.link.settimeout(max(0.01, self.deadline - time.monotonic()))
        part = self.link.recv(1 << 16)
        if not part:
            raise EOFError("the connection ended")
        self.got += part


class Monitor:
    """QEMU's own commands (QMP) for a machine."""

    def __init__(self, machine):
        self.machine = machine
        deadline = time.monotonic() + 60
        self.stream = Stream(machine._connect("qmp", deadline))
        self.stream.deadline = deadline
        self.stream.line()  # a greeting
        self.ask("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.link.close()

    def ask(self, command, **arguments):
        self.stream.deadline = time.monotonic() + 60
        try:
            self.stream.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            while True:
                answer = json.loads(self.stream.line())
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise Dead(f"QEMU refuses {command}: {answer['error']['desc']}{self.machine._console_tail()}")
        except (OSError, EOFError) as error:
            raise Dead(f"QEMU does not answer {command}: {error}{self.machine._console_tail()}") from None

    def until(self, query, wanted, unless, seconds=120):
        deadline = time.monotonic() + seconds
        while (status := self.ask(query).get("status")) != wanted:
            if status in unless or time.monotonic() > deadline:
                raise Dead(f"{query} says {status!r} and not {wanted!r}{self.machine._console_tail()}")
            time.sleep(0.02)


def hardware(mem, smp):
    """What a saved machine and the one that it is restored in must have in common."""
    return ["-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", str(smp), "-m", f"{mem}M",
            "-device", "virtio-rng-pci"]


def saved(suite, mem=1024, smp=2):
    """The directory with the memory and the disk of a machine of this size that has just booted; made when first needed."""
    base = image.ensure(suite)
    version = subprocess.run([QEMU, "--version"], capture_output=True, check=True, text=True).stdout

    def make(half):
        say(f"booting {suite} once, to save it ({mem} MB, {smp} processors)")
        directory, owner = new_directory()
        machine = Machine(directory, suite, mem, smp, None, True, owner)
        Machine._open.add(machine)
        try:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base / "root.ext4",
                            directory / "disk.qcow2"], check=True)
            machine.start()
            machine.run(CALM, timeout=180)
            machine.save(half)
        finally:
            machine.close()

    return kept(base / f"booted-{mem}-{smp}", repr([version, hardware(mem, smp), KERNEL, CALM]), make)


def prepared(suite, files, command):
    """The same of a machine that was given these files, and in which this has been done since."""
    booted = saved(suite)
    contents = [(path, hashlib.sha256(Path(file).read_bytes()).hexdigest()) for path, file in files.items()]

    def make(half):
        with Machine.restore(suite) as machine:
            machine.put(files)
            machine.run(command)
            machine.run("sync")
            machine.save(half)

    return kept(image.HOME / suite / "prepared", repr([(booted / "of").read_text(), contents, command]), make)


def kept(state, of, make):
    """A directory that holds what was made `of` this; else it is made anew."""
    digest = hashlib.sha256(of.encode()).hexdigest()
    half = state.with_name(state.name + ".half")
    with open(image.HOME / f"{state.parent.name}.{state.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if (state / "of").read_text() == digest:
                return state
        for left in (state, half):
            shutil.rmtree(left, ignore_errors=True)
        half.mkdir()
        make(half)
        (half / "of").write_text(digest)
        half.rename(state)
    return state


def new_directory():
    """A directory for one machine, and the lock that says that its owner lives; removes those of owners that do not."""
    parent = image.HOME / "machines"
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for old in parent.glob("m*"):
            with open(old / "owner", "w") as owner, contextlib.suppress(BlockingIOError):
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix="m", dir=parent))
        owner = os.open(directory / "owner", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(owner, fcntl.LOCK_EX)
    return directory, owner


def as_root(member):
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return None if "__pycache__" in member.name else member


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def close_all():
    """Ends every machine of this process."""
    for machine in list(Machine._open):
        machine.close()


def abandon(status):
    """Ends this process at once, and its machines with it; for a signal handler, which can't wait for other threads."""
    for machine in list(Machine._open):
        shutil.rmtree(machine.directory, ignore_errors=True)
    os._exit(status)


atexit.register(close_all)
