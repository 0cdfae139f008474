"""A journald that keeps the fields of each entry as a line of JSON: journald.py SOCKET FILE COMMAND…, until the command ends."""

import json
import os
import socket
import subprocess
import sys


def fields(entry):
    """NAME=VALUE, or NAME, and the length of a value that may hold anything."""
    while entry:
        name, _, entry = entry.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
        else:
            length = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + length], entry[9 + length :]
        yield name.decode(), value.decode()


os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
listener.settimeout(0.1)
child = subprocess.Popen(sys.argv[3:])
with open(sys.argv[2], "w") as kept:
    while True:
        ended = child.poll() is not None
        try:
            print(json.dumps(dict(fields(listener.recv(1 << 20)))), file=kept, flush=True)
        except socket.timeout:
            if ended:
                break
