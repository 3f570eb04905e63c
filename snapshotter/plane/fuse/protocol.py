"""The first exchange of a FUSE connection, as bytes: the kernel's INIT request and libfuse's reply to it.

libfuse answers INIT with its own idea of flags and limits. We stand between it and the kernel and correct the reply,
since neither libfuse 3.14 nor pyfuse3 lets us choose these. Everything here is pure.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from snapshotter.errors import PlaneError

OP_LOOKUP: Final = 1
OP_FORGET: Final = 2
OP_READ: Final = 15
OP_GETXATTR: Final = 22
OP_INIT: Final = 26
OP_READDIR: Final = 28
OP_INTERRUPT: Final = 36
OP_BATCH_FORGET: Final = 42
OP_READDIRPLUS: Final = 44
OPCODES: Final[Mapping[str, int]] = {
    "lookup": OP_LOOKUP,
    "getattr": 3,
    "readlink": 5,
    "open": 14,
    "read": OP_READ,
    "statfs": 17,
    "getxattr": OP_GETXATTR,
    "listxattr": 23,
    "opendir": 27,
    "readdir": OP_READDIR,
    "access": 34,
}
"""Of the requests that do something, by the handler's name. Source: linux/fuse.h."""

MAX_MESSAGE: Final = 1 << 21
"""The kernel refuses a read into less than one request of the agreed size (1 MiB and a header)."""

PARALLEL_DIROPS: Final = 1 << 18
"""Without it the kernel holds one lock per directory over a LOOKUP, and those who wait for it cannot be killed.
libfuse 3.14 asks for it and forgets it in the reply."""
CACHE_SYMLINKS: Final = 1 << 23
"""Targets of symbolic links stay in the page cache: layers never change."""
MAX_PAGES: Final = 1 << 22

MAX_BACKGROUND: Final = 4096
"""Requests that nobody waits for one by one (read-ahead) the kernel may have open at a time. Its default of 12 lets a
dozen readers of a dead registry stop the read-ahead of every other layer."""
CONGESTION_THRESHOLD: Final = 3072

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""fuse_in_header, 40 bytes: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
_INIT_IN: Final = struct.Struct("<IIII")
"""First 16 bytes of fuse_init_in: major, minor, max_readahead, flags."""
_OUT_HEADER: Final = struct.Struct("<IiQ")
"""fuse_out_header, 16 bytes: len, error, unique."""
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHH")
"""First 32 bytes of fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write,
time_gran, max_pages, map_alignment. Source: linux/fuse.h."""


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel offers; `max_readahead` in bytes."""

    minor: int
    max_readahead: int
    flags: int


@dataclass(frozen=True, slots=True)
class InitReply:
    """What was agreed; `max_readahead` and `max_write` in bytes, `max_pages` in pages."""

    minor: int
    max_readahead: int
    flags: int
    max_background: int
    congestion_threshold: int
    max_write: int
    max_pages: int


def parse_in_header(message: bytes) -> tuple[int, int, int]:
    """(opcode, unique, inode) of any request.

    Raises:
        PlaneError: it is shorter than a header.
    """
    if len(message) < _IN_HEADER.size:
        raise PlaneError(f"the kernel sent a FUSE request of {len(message)} bytes")
    _, opcode, unique, inode = _IN_HEADER.unpack_from(message)[:4]
    return opcode, unique, inode


def error_reply(unique: int, error: int) -> bytes:
    """The answer that a request failed with an errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -error, unique)


def data_reply(unique: int, data: bytes) -> bytes:
    """The answer that gives data to a READ."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(data), 0, unique) + data


def parse_init_request(message: bytes) -> InitRequest:
    """Read the first message of a connection.

    Raises:
        PlaneError: it is not an INIT of protocol 7.
    """
    if len(message) < _IN_HEADER.size + _INIT_IN.size:
        raise PlaneError(f"the kernel's first FUSE message has {len(message)} bytes, too few for an INIT")
    opcode = _IN_HEADER.unpack_from(message)[1]
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(message, _IN_HEADER.size)
    if opcode != OP_INIT or major != 7:
        raise PlaneError(f"the kernel's first FUSE message is opcode {opcode} of protocol {major}, not INIT of 7")
    return InitRequest(minor, max_readahead, flags)


def parse_init_reply(message: bytes) -> InitReply:
    """Read a reply to INIT, libfuse's or ours.

    Raises:
        PlaneError: it is an error or too short for protocol 7.23 and later.
    """
    if len(message) < _OUT_HEADER.size + _INIT_OUT.size:
        raise PlaneError(f"libfuse answered INIT with {len(message)} bytes; this libfuse is not supported")
    length, error, _unique = _OUT_HEADER.unpack_from(message)
    if error or length != len(message):
        raise PlaneError(f"libfuse refused the kernel's INIT (error {error}, {length} bytes)")
    fields = _INIT_OUT.unpack_from(message, _OUT_HEADER.size)
    max_pages = fields[8] if fields[3] & MAX_PAGES else 32
    return InitReply(fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], max_pages)


def patch_init_reply(reply: bytes, request: bytes) -> bytes:
    """The reply of libfuse with the flags and limits that it forgets, as far as the kernel offers them.

    Only what libfuse need not know about is touched; in particular never what sizes its buffers.

    Raises:
        PlaneError: either message is not what it should be.
    """
    offered = parse_init_request(request)
    parse_init_reply(reply)
    fields = list(_INIT_OUT.unpack_from(reply, _OUT_HEADER.size))
    fields[3] |= (PARALLEL_DIROPS | CACHE_SYMLINKS) & offered.flags
    fields[4] = MAX_BACKGROUND
    fields[5] = CONGESTION_THRESHOLD
    patched = bytearray(reply)
    _INIT_OUT.pack_into(patched, _OUT_HEADER.size, *fields)
    return bytes(patched)
