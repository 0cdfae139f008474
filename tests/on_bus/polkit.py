"""Stands for polkit: grants the one action that is named, or never answers at all. It speaks the wire protocol itself,
because python3-dbus serves objects only with a main loop, which Debian has in another package."""
import os
import socket
import struct
import sys

path = os.environ["DBUS_SYSTEM_BUS_ADDRESS"].removeprefix("unix:path=")
bus = socket.socket(socket.AF_UNIX)
bus.connect(path)
bus.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n")
while not bus.recv(1) == b"\n":
    pass
serial = 0


def pad(data, to):
    return data + b"\0" * (-len(data) % to)


def field(code, kind, value):
    data = struct.pack("<BB", code, len(kind)) + kind.encode() + b"\0"
    if kind == "g":
        return data + struct.pack("<B", len(value)) + value.encode() + b"\0"
    if kind == "u":
        return data + struct.pack("<I", value)
    return data + text(value)


def send(message_type, fields, signature="", body=b""):
    global serial
    serial += 1
    if signature:
        fields = [*fields, field(8, "g", signature)]
    # Each field begins at a multiple of 8; the padding after the last one is not counted.
    together = b"".join(pad(f, 8) for f in fields[:-1]) + fields[-1]
    head = struct.pack("<cBBBIII", b"l", message_type, 0, 1, len(body), serial, len(together))
    bus.sendall(head + pad(together, 8) + body)


def text(value):
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def receive(length):
    data = b""
    while len(data) < length:
        more = bus.recv(length - len(data))
        if not more:
            sys.exit(0)
        data += more
    return data


def call(member, signature="", body=b""):
    driver = "org.freedesktop.DBus"
    head = [field(1, "o", "/org/freedesktop/DBus"), field(6, "s", driver), field(2, "s", driver)]
    send(1, [*head, field(3, "s", member)], signature, body)


call("Hello")
call("RequestName", "su", pad(text("org.freedesktop.PolicyKit1"), 4) + struct.pack("<I", 4))
while True:
    head = receive(16)
    little = "<" if head[:1] == b"l" else ">"
    body_length, number, fields_length = struct.unpack(little + "III", head[4:])
    fields = receive(fields_length + -fields_length % 8)
    body = receive(body_length)
    if head[1] != 1 or sys.argv[1] == "hang":
        continue
    # The sender is the field 7: its code, the signature "s", and the string.
    at = fields.index(b"\x07\x01s\0") + 4
    length = struct.unpack(little + "I", fields[at : at + 4])[0]
    sender = fields[at + 4 : at + 4 + length].decode()
    granted = sys.argv[1].encode() + b"\0" in body
    answer = struct.pack("<III", granted, 0, 0) + b"\0" * 4
    send(2, [field(5, "u", number), field(6, "s", sender)], "(bba{ss})", answer)
