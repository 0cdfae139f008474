"""Writes without end, ignores SIGTERM, and adds a byte to the file `acknowledged` after each write that is safe.

Usage: writer.py append|rename|sqlite MODE
"""

import os
import signal
import sqlite3
import sys


def acknowledge(log):
    os.write(log, b".")


def append(log, _mode):
    """Records of 64 bytes at the end of one file."""
    file = os.open("records", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    number = 0
    while True:
        os.write(file, b"%063d\n" % number)
        os.fsync(file)
        acknowledge(log)
        number += 1


def rename(log, _mode):
    """One file, replaced as it is done by the book."""
    directory = os.open(".", os.O_RDONLY)
    number = 0
    while True:
        with open("document.new", "w") as file:
            file.write(f"{number}\n" * 1000)
            file.flush()
            os.fsync(file.fileno())
        os.rename("document.new", "document")
        os.fsync(directory)
        acknowledge(log)
        number += 1


def sqlite(log, mode):
    """Transactions of 50 rows."""
    database = sqlite3.connect("workload.db", isolation_level=None)
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("CREATE TABLE t (batch INTEGER, text TEXT)")
    batch = 0
    while True:
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(batch, "x" * 100)] * 50)
        database.execute("COMMIT")
        acknowledge(log)
        batch += 1


signal.signal(signal.SIGTERM, signal.SIG_IGN)
acknowledged = os.open("acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
{"append": append, "rename": rename, "sqlite": sqlite}[sys.argv[1]](acknowledged, sys.argv[2])
