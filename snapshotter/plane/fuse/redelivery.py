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
import subprocess
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
_READ_IN: Final = struct.Struct("<QQ")
"""First 16 bytes of fuse_read_in: fh, offset."""

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A request as read from the descriptor. Its `opcode` may be one that has no answer."""

    opcode: int
    unique: int
    request: Request


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


def sweep(fd: int, fresh_name: Path) -> int | None:
    """Answer ESTALE to all that may be waiting for the dead daemon; returns to how many, None if no number was found.

    `fresh_name` is a path in the mount that the kernel has not asked for yet; a child looks it up if nobody else asks for anything.
    """
    newest = 0
    count = 0
    for waiting in _drain(fd):
        newest = max(newest, waiting.unique)
        count += _answer(fd, waiting.unique, errno.ESTALE)
    if not newest:
        newest = _number_of_a_lookup(fd, fresh_name)
    if not newest:
        return None
    newest &= ~1
    for unique in range(max(newest - SWEEP, 2), newest + 2, 2):
        count += _answer(fd, unique, errno.ESTALE)
    return count


def _number_of_a_lookup(fd: int, fresh_name: Path) -> int:
    """Have a child ask for a name and return the request's number, once answered; 0 if none came."""
    command = [sys.executable, "-I", "-S", "-c", _STAT, os.fspath(fresh_name)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/") as child:
        newest = 0
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while child.poll() is None and poll.poll(_NEWEST_TIMEOUT_S * 1000):
            for waiting in _drain(fd):
                newest = max(newest, waiting.unique)
                _answer(fd, waiting.unique, errno.ENOENT if waiting.opcode == OP_LOOKUP else errno.ESTALE)
        child.kill()
    return newest


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
            yield Waiting(opcode, unique, Request(*_same(opcode, inode, message)))


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
    try:
        os.write(fd, error_reply(unique, error))
    except OSError as refusal:
        if refusal.errno == errno.ENOENT:
            return False
        raise
    return True
