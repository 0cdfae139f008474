"""Programs that are stuck, each in its own way: stuck.py HOW [ARGUMENT…]."""
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time

libc = ctypes.CDLL(None)


def mutexes():
    """Two threads that hold a mutex of the C library each, and want that of the other."""
    a, b = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    both = threading.Barrier(2)

    def hold(first, second):
        libc.pthread_mutex_lock(first)
        both.wait()
        libc.pthread_mutex_lock(second)

    threads = [threading.Thread(target=hold, args=pair) for pair in ((a, b), (b, a))]
    [t.start() for t in threads]
    [t.join() for t in threads]


def locks():
    """The same with Python's own locks, which have no owner."""
    a, b = threading.Lock(), threading.Lock()
    both = threading.Barrier(2)

    def hold(first, second):
        with first:
            both.wait()
            with second:
                pass

    threads = [threading.Thread(target=hold, args=pair) for pair in ((a, b), (b, a))]
    [t.start() for t in threads]
    [t.join() for t in threads]


def thread():
    """The main thread waits for one that sleeps."""
    other = threading.Thread(target=time.sleep, args=(1000,))
    other.start()
    other.join()


def terminal():
    """A child that reads from a terminal on which nobody types."""
    import pty
    pid, _ = pty.fork()
    if pid == 0:
        os.read(0, 1)
    os.waitpid(pid, 0)


def pipe():
    """Reads from a pipe that nobody else has open."""
    reader, _ = os.pipe()
    os.read(reader, 1)


def circle():
    """Two processes, each of which reads what the other is to write."""
    (ra, wa), (rb, wb) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(ra), os.close(wb)
        os.read(rb, 1)
        os._exit(0)
    os.close(rb), os.close(wa)
    os.read(ra, 1)


def tcp(port):
    """A server that never answers."""
    with socket.create_connection(("127.0.0.1", int(port))) as s:
        s.recv(1)


def unix(path):
    """The same on a unix socket."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.recv(1)


def connect(port):
    """A server that does not even take the connection."""
    socket.create_connection(("127.0.0.1", int(port)))


def polling(how, port):
    """The same server, waited for with poll, select or epoll."""
    with socket.create_connection(("127.0.0.1", int(port))) as s:
        if how == "select":
            select.select([s], [], [])
        elif how == "poll":
            p = select.poll()
            p.register(s, select.POLLIN)
            p.poll()
        else:
            p = select.epoll()
            p.register(s, select.EPOLLIN)
            p.register(os.eventfd(0), select.EPOLLIN)
            p.poll()


def named(words):
    """A process with a name that is made to steer terminals."""
    libc.prctl(15, ctypes.c_char_p(b"\x1b[2J\nrun_0: ok"))
    if len(sys.argv) < 4:
        os.execv(sys.executable, [sys.executable, sys.argv[0], "named", words, "\x1b]0;title\x07\nrun_0: healthy"])
    time.sleep(1000)


def private():
    """A process into which its own user may not look."""
    libc.prctl(4, 0)
    time.sleep(1000)


def busy():
    """Computes, in a process whose parent waits."""
    pid = os.fork()
    if pid == 0:
        while True:
            pass
    os.waitpid(pid, 0)


def datagram():
    """Waits for a datagram on a unix socket."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind("waits.sock")
    s.recv(1)


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


globals()[sys.argv[1]](*sys.argv[2:4] if sys.argv[1] != "named" else sys.argv[2:3])
