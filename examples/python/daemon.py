#!/usr/bin/env python3
"""Fills the files of a bound directory from a directory of full files.

usage: daemon.py SOCKET DIR SOURCEDIR

Start it beside `lacuna bind DIR --devnode SOCKET`. It prints `ready` once
reads of DIR may begin, and runs until it is killed or the devnode goes away.
Python 3.8 or later, standard library only. docs/devnode.md is the protocol.
"""

import os
import socket
import struct
import sys

RECORD = struct.Struct("=QQQ255sx")  # id, off, len, path: 280 bytes


def pump(source, target, off, length):
    """Copies [off, off+length) from one file to the other."""
    while length > 0:
        data = os.pread(source, min(length, 1 << 20), off)
        if not data:
            raise EOFError("source is shorter")
        length -= len(data)
        while data:
            written = os.pwrite(target, data, off)
            data, off = data[written:], off + written


def fill(directory, source_directory, record):
    """Fills one request and returns the command that answers it."""
    number, off, length, path = RECORD.unpack(record)
    name = path.split(b"\0", 1)[0]
    try:
        source = os.open(os.path.join(source_directory, name), os.O_RDONLY)
        try:
            # Our own writes are let through: this process is the daemon.
            target = os.open(os.path.join(directory, name), os.O_WRONLY)
            try:
                pump(source, target, off, length)
            finally:
                os.close(target)
        finally:
            os.close(source)
    except OSError as error:
        print(f"{name!r} {off}+{length}: {error}", file=sys.stderr)
        return b"done %d %d" % (number, error.errno)
    except EOFError as error:
        print(f"{name!r} {off}+{length}: {error}", file=sys.stderr)
        return b"done %d EIO" % number
    return b"done %d" % number


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: daemon.py SOCKET DIR SOURCEDIR")
    directory, source_directory = (os.fsencode(os.path.abspath(p)) for p in sys.argv[2:])
    devnode = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    devnode.connect(sys.argv[1])
    # One command a message. sync is answered when those before it are obeyed.
    for command in b"dir " + directory, b"tag python", b"bind", b"sync":
        devnode.send(command)
    ready = False
    while True:
        message = devnode.recv(4096)  # waits; one record or one answer a call
        if not message:
            sys.exit("the devnode has closed the connection")
        if len(message) == RECORD.size:
            devnode.send(fill(directory, source_directory, message))
        elif message == b"ok sync":
            ready = True
            print("ready", flush=True)
        else:
            print(message.decode(), file=sys.stderr)
            if not ready:
                sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
