"""What a daemon and its keeper say to each other: one message a packet of a SOCK_SEQPACKET socket.

A keeper outlives many versions of the daemon, so these bytes never change; what a daemon wants to tell its successor is
a record that the keeper does not read. Header, 12 bytes: magic (4), kind u16, flags u16, value u32, little endian; then
the payload. A descriptor travels beside its message by SCM_RIGHTS.

    daemon                                     keeper
    HELLO                                  →   WELCOME, payload as of PUT, descriptor, value ms since the last daemon
                                               left; without descriptor: nothing is kept
                                               BUSY, value the pid of the daemon that has it now
    PUT  value: deadline in seconds, flags,
         payload: device minor u32, record,
         descriptor                        →   DONE
    READY  the kernel has its INIT reply   →   DONE
    DROP   forget what is kept             →   DONE, or BUSY if another daemon has it
    LOOK                                   →   STATE, value the pid of the daemon (0: none), flag KEPT

Imports nothing but the standard library: the keeper runs without site-packages.
"""

import os
import socket
import struct
from array import array
from collections.abc import Iterable
from typing import Final, NamedTuple

SOCKET_NAME: Final = "keeper.sock"
LOCK_NAME: Final = "keeper.lock"
"""Both in the run directory."""

HELLO: Final = 1
WELCOME: Final = 2
BUSY: Final = 3
PUT: Final = 4
DONE: Final = 5
READY: Final = 6
DROP: Final = 7
LOOK: Final = 8
STATE: Final = 9

RESEND: Final = 1
"""Flag of PUT: when the daemon dies, requests that it had read go back to the queue (Linux 6.9 and later)."""
ANSWERED: Final = 2
"""Flag of PUT: READY was said before, to another keeper or in another message."""
KEPT: Final = 1
"""Flag of STATE: a descriptor is kept."""

MAX_MESSAGE: Final = 64 << 10
RESEND_NOTICE: Final = struct.pack("<IiQ", 16, 7, 0)
"""fuse_out_header of a notification: 16 bytes, code FUSE_NOTIFY_RESEND (7), unique 0. Source: linux/fuse.h."""

_HEADER: Final = struct.Struct("<4sHHI")
_MINOR: Final = struct.Struct("<I")
_MAGIC: Final = b"EKP1"
_CONTROL_SPACE: Final = socket.CMSG_SPACE(4 * 4)
"""Room for four descriptors; of more the kernel closes what does not fit, and says so."""


class Message(NamedTuple):
    """One packet. `fds` are the receiver's to close."""

    kind: int
    flags: int = 0
    value: int = 0
    payload: bytes = b""
    fds: tuple[int, ...] = ()


def send(connection: socket.socket, message: Message) -> None:
    """Send one message with its descriptors; these stay the caller's. Raises OSError."""
    packet = _HEADER.pack(_MAGIC, message.kind, message.flags, message.value) + message.payload
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", message.fds))] if message.fds else []
    # Not socket.send_fds and recv_fds: they drop the flags (Python 3.11).
    connection.sendmsg([packet], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> Message | None:
    """The next message; None when the other side is gone, or says what no message is. Raises OSError."""
    packet, controls, flags, _ = connection.recvmsg(MAX_MESSAGE, _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, what, data in controls:
        if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if len(packet) < _HEADER.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        return None
    magic, kind, message_flags, value = _HEADER.unpack_from(packet)
    if magic != _MAGIC:
        close_all(fds)
        return None
    return Message(kind, message_flags, value, packet[_HEADER.size :], tuple(fds))


def pack_kept(minor: int, record: bytes) -> bytes:
    """The payload of PUT: the FUSE mount's minor device number, and what a successor is told."""
    return _MINOR.pack(minor) + record


def unpack_kept(payload: bytes) -> tuple[int, bytes]:
    """What `pack_kept` was given. Raises struct.error."""
    return _MINOR.unpack_from(payload)[0], payload[_MINOR.size :]


def peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as it was when it connected. Source: socket(7), SO_PEERCRED."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)
