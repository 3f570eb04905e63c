"""A real FUSE mount whose requests a test reads and answers itself, message by message."""

import errno
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from snapshotter.plane.fuse.kernel import Connection, answer_init, open_connection
from snapshotter.plane.fuse.protocol import (
    MAX_MESSAGE,
    data_reply,
    error_reply,
    parse_in_header,
    parse_init_request,
)
from snapshotter.plane.mounts import detach, mounts_on

REQUEST_S: Final = 60.0
RESENT: Final = 1 << 63
"""Bit of `unique` in a request that the kernel sends again."""

_ASK = """
import os, sys
try:
    print(os.getxattr(sys.argv[1], sys.argv[2]).decode())
except OSError as error:
    print(error.errno)
"""


class Raw(NamedTuple):
    """A request as it came."""

    opcode: int
    unique: int
    inode: int
    message: bytes

    @property
    def name(self) -> str:
        """That of a GETXATTR: after its header, and a size and padding of 8 bytes."""
        return self.message[48:].rstrip(b"\0").decode()


class RawMount:
    """One connection, agreed with the kernel."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.fd = connection.fd
        self.minor = int(connection.device.partition(":")[2])
        self._children: list[subprocess.Popen[str]] = []

    def ask(self, name: str) -> "subprocess.Popen[str]":
        """A process that asks for one attribute of the mount's root: one GETXATTR. It prints the value, or the errno."""
        words = [sys.executable, "-I", "-S", "-c", _ASK, str(self.connection.mount_point), name]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        return child

    def await_request(self) -> None:
        """Return when one waits to be read. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(REQUEST_S * 1000):
            raise TimeoutError("the kernel asked nothing")

    def read(self) -> Raw:
        """The next request. Raises TimeoutError."""
        self.await_request()
        message = os.read(self.fd, MAX_MESSAGE)
        return Raw(*parse_in_header(message), message)

    def asks_nothing(self) -> bool:
        """Whether no request waits now."""
        try:
            os.read(self.fd, MAX_MESSAGE)
        except BlockingIOError:
            return True
        return False

    def give(self, unique: int, value: str) -> None:
        """Answer a GETXATTR."""
        os.write(self.fd, data_reply(unique, value.encode()))

    def fail(self, unique: int, error: int) -> None:
        """Answer with an errno."""
        os.write(self.fd, error_reply(unique, error))

    def end(self) -> None:
        """Unmount; who waits has an error then."""
        while mounts_on(self.connection.mount_point):
            detach(self.connection.mount_point)

    def await_end(self) -> None:
        """Return when the connection has ended: a copy of the mount in another namespace keeps it. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self.fd, 0)
        if not poll.poll(REQUEST_S * 1000):
            raise TimeoutError("the connection did not end")

    def close_connection(self) -> None:
        """Give the descriptor up, as the death of this process would; who waits has an error if it was the last one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        self.end()
        self.close_connection()
        for child in self._children:
            with child:
                child.kill()


def said(child: "subprocess.Popen[str]") -> str:
    """What a process that asked had for an answer."""
    return child.communicate(timeout=REQUEST_S)[0].strip()


EIO, ECONNABORTED = str(errno.EIO), str(errno.ECONNABORTED)


@contextmanager
def raw_mount(mount_point: Path) -> Iterator[RawMount]:
    """Mounted and agreed with the kernel."""
    made = RawMount(open_connection(mount_point))
    try:
        offered = parse_init_request(made.connection.init)
        unique = parse_in_header(made.connection.init)[1]
        # fuse_init_out of 64 bytes: nothing but READs of one page, protocol 7.31.
        body = struct.pack("<IIIIHHIIHH32x", 7, 31, offered.max_readahead, 0, 0, 0, 4096, 1, 0, 0)
        assert answer_init(made.fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
        os.set_blocking(made.fd, False)
        yield made
    finally:
        made.close()
