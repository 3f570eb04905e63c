"""Requests that a dead daemon had read: the kernel gives them to us, or their waiters are told to ask again.

Linux 6.9 and later bring them back on FUSE_NOTIFY_RESEND, with bit 63 of `unique` set. Before that nobody gives them
back, and their waiters would hang for ever. There every number that the kernel may have given out is answered by
ESTALE: the VFS repeats lookup, open, stat, access and readlink once after it, and a failed read-ahead is read again.
Numbers that are not waited for answer ENOENT, 2 µs each.

Between the end of the old daemon and the start of our own session nobody reads the descriptor; all this happens then.
"""

import errno
import logging
import os
import select
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from snapshotter.plane.fuse.in_hand import Request, argument_of
from snapshotter.plane.fuse.protocol import (
    MAX_MESSAGE,
    OP_BATCH_FORGET,
    OP_FORGET,
    OP_GETXATTR,
    OP_INTERRUPT,
    OP_LOOKUP,
    OP_READ,
    OP_READDIR,
    OP_READDIRPLUS,
    data_reply,
    error_reply,
    parse_in_header,
)

RESEND_NOTICE: Final = struct.pack("<IiQ", 16, 7, 0)
"""fuse_out_header of a notification: 16 bytes, code FUSE_NOTIFY_RESEND (7), unique 0. Source: linux/fuse.h."""
SWEEP: Final = 400_000
"""How far back numbers of waiting requests may lie: a READ that waits for a registry while others go on. They go up by 2."""

_NEWEST_TIMEOUT_S: Final = 5.0
_STAT: Final = "import os, sys\ntry: os.lstat(sys.argv[1])\nexcept OSError: pass"
_SILENT: Final = frozenset({OP_FORGET, OP_BATCH_FORGET, OP_INTERRUPT})
_BODY: Final = 40
_READ_IN: Final = struct.Struct("<QQI")
"""First 20 bytes of fuse_read_in: fh, offset, size."""

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A request as read from the descriptor. Its `opcode` may be one that has no answer."""

    opcode: int
    unique: int
    request: Request
    size: int = 0
    """Of a READ: how many bytes are asked for."""


def resend(fd: int) -> bool:
    """Have every request that was read and not answered brought back; False where the kernel cannot."""
    try:
        os.write(fd, RESEND_NOTICE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise
    return True


def refuse(fd: int, convicted: Collection[Request]) -> int:
    """Answer EIO to the convicted among the waiting requests and leave all others waiting; returns how many there were.

    Where the kernel resends only: the others are read here too, and go back to the queue.
    """
    resend(fd)
    count = 0
    for waiting in tuple(_drain(fd)):
        if waiting.request in convicted:
            count += _answer(fd, waiting.unique, errno.EIO)
    resend(fd)
    return count


class Sweep(NamedTuple):
    """What came of a sweep: how many waiters were told to ask again, and a READ that had to be taken for it, if it was one.

    `child` is a process that ends once somebody serves, and is to be waited for; 0: none was needed.
    """

    told: int
    read: Waiting | None
    child: int


def sweep(fd: int, fresh_name: Path) -> Sweep | None:
    """Answer ESTALE to all that may be waiting for the dead daemon; None if the newest number was not found.

    That takes one request out of the queue. All others there are newer and wait for us; those who are told to ask again
    stand behind them. `fresh_name` is a path in the mount that the kernel has not asked for yet; a child looks it up if
    nobody else asks for anything.
    """
    child, waiting = 0, next(_drain(fd), None)
    if waiting is None:
        child = _spawn_lookup(fresh_name)
        waiting = _first(fd)
    if waiting is None:
        return None
    newest = waiting.unique & ~1
    count = sum(_answer(fd, unique, errno.ESTALE) for unique in range(max(newest - SWEEP, 2), newest, 2))
    if waiting.opcode == OP_READ:
        # Asked anew this would be the second refusal in a row for one page, which its reader would see.
        return Sweep(count, waiting, child)
    _answer(
        fd, waiting.unique, errno.ENOENT if waiting.opcode == OP_LOOKUP and _is(waiting, fresh_name) else errno.ESTALE
    )
    return Sweep(count, None, child)


def answer_read(fd: int, waiting: Waiting, data: bytes | bytearray | None) -> None:
    """Answer the READ that a sweep had to take; None: it failed."""
    if data is None:
        _answer(fd, waiting.unique, errno.EIO)
    else:
        _write(fd, data_reply(waiting.unique, bytes(data)))


def _spawn_lookup(name: Path) -> int:
    """A process that asks for a name in the mount."""
    command = [sys.executable, "-I", "-S", "-c", _STAT, os.fspath(name)]
    return os.posix_spawn(sys.executable, command, {})


def _first(fd: int) -> Waiting | None:
    """The next request, which need not be that of a process that was started for it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return next(_drain(fd), None) if poll.poll(_NEWEST_TIMEOUT_S * 1000) else None


def _is(waiting: Waiting, fresh_name: Path) -> bool:
    return waiting.request.argument == argument_of(OP_LOOKUP, os.fsencode(fresh_name.name))


def _drain(fd: int) -> Iterator[Waiting]:
    """Read what waits, until nothing does. The descriptor does not block."""
    while True:
        try:
            message = os.read(fd, MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # the request went away, or a signal came
                continue
            raise
        opcode, unique, inode = parse_in_header(message)
        if opcode not in _SILENT:
            size = _READ_IN.unpack_from(message, _BODY)[2] if opcode == OP_READ else 0
            yield Waiting(opcode, unique, Request(*_same(opcode, inode, message)), size)


def _same(opcode: int, inode: int, message: bytes) -> tuple[int, int, int]:
    """A raw request as handlers see it: a listing comes as either of two opcodes."""
    value: object = None
    if opcode == OP_LOOKUP:
        value = message[_BODY:].rstrip(b"\0")
    elif opcode == OP_GETXATTR:
        value = message[_BODY + 8 :].rstrip(b"\0")
    elif opcode in (OP_READ, OP_READDIR, OP_READDIRPLUS) and len(message) >= _BODY + _READ_IN.size:
        value = _READ_IN.unpack_from(message, _BODY)[1]
    return OP_READDIR if opcode == OP_READDIRPLUS else opcode, inode, argument_of(opcode, value)


def _answer(fd: int, unique: int, error: int) -> bool:
    """Whether somebody waited for this number, who has this error now."""
    return _write(fd, error_reply(unique, error))


def _write(fd: int, reply: bytes) -> bool:
    try:
        os.write(fd, reply)
    except OSError as refusal:
        if refusal.errno == errno.ENOENT:
            return False
        raise
    return True
