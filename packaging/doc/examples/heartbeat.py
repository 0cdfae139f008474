#!/usr/bin/python3
"""How a Python program says that it goes on: heartbeat.py, in a run, does three steps. Outside of one it says nothing.

    guardian run --readiness notify --heartbeat-timeout 1m --heartbeat-action kill -- ./heartbeat.py
"""

import os
import socket
import time


def say(*lines):
    """Sends messages of sd_notify(3) to the run's own socket."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            pass  # The instance may be restarting. The next one counts.


if __name__ == "__main__":
    say("READY=1", "STATUS=begins")
    for step in range(1, 4):
        say("WATCHDOG=1", f"STATUS=step {step} of 3")
        time.sleep(0.1)
    say("STOPPING=1", "STATUS=done")
