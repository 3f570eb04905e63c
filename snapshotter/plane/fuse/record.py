"""What a later process must know to serve the same FUSE connection; kept beside the descriptor, outside of this process."""

import base64
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from snapshotter.errors import TakeOverRefused
from snapshotter.format.index import NODES_REVISION
from snapshotter.plane.fuse.inodes import INODE_REVISION
from snapshotter.plane.fuse.protocol import parse_init_reply

RECORD_REVISION: Final = 1
"""Revision 1 has all fields below. A later one may add fields, which this one ignores, and must keep these."""

_DECIDING: Final = 1 << 0 | 1 << 4 | 1 << 12 | 1 << 13 | 1 << 16 | 1 << 20 | 1 << 22
"""Flags of INIT by which replies are formed and buffers sized: ASYNC_READ, EXPORT_SUPPORT, AUTO_INVAL_DATA, DO_READDIRPLUS,
WRITEBACK_CACHE, POSIX_ACL, MAX_PAGES. Source: linux/fuse.h."""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One FUSE connection, as its first daemon made it."""

    record_revision: int
    inode_revision: int
    session: int
    init: bytes
    """The INIT message as the kernel sent it."""
    reply: bytes
    """The reply as the kernel got it: another libfuse must agree to the same. Empty: not known yet."""
    device: str
    mount_point: str
    version: str
    """Of the daemon that mounted."""
    take_overs: int = 0
    """How many daemons have taken the connection over so far."""
    plane: str = ""
    plane_reason: str = ""
    backing: str = ""
    """Which plane runs, why, and what its images are mounted from: found out at the mount, and no other in the same boot."""
    root: str = ""
    """Which root directory the numbers belong to that the kernel was given: what `root_mark` says of it."""
    nodes_revision: int = NODES_REVISION
    """Of the numbering of nodes, which inode numbers are made of."""

    def encode(self) -> bytes:
        """As bytes, for a keeper or a memory file."""
        fields = asdict(self)
        for name in ("init", "reply"):
            fields[name] = base64.b64encode(fields[name]).decode()
        return json.dumps(fields).encode()

    def taken_over(self) -> "SessionRecord":
        """The record for the daemon after the next."""
        return replace(self, take_overs=self.take_overs + 1)


def decode_record(data: bytes) -> SessionRecord:
    """Read what `encode` wrote, of this version or another.

    Raises:
        TakeOverRefused: this version cannot serve such a connection; the message says why.
    """
    try:
        fields = json.loads(data)
        revision = fields["record_revision"]
        if revision != RECORD_REVISION:
            raise TakeOverRefused(
                f"the daemon before kept a record of revision {revision}, this one knows {RECORD_REVISION}"
            )
        record = SessionRecord(
            record_revision=revision,
            inode_revision=fields["inode_revision"],
            session=fields["session"],
            init=base64.b64decode(fields["init"], validate=True),
            reply=base64.b64decode(fields["reply"], validate=True),
            device=fields["device"],
            mount_point=fields["mount_point"],
            version=fields["version"],
            take_overs=fields["take_overs"],
            plane=fields.get("plane", ""),
            plane_reason=fields.get("plane_reason", ""),
            backing=fields.get("backing", ""),
            root=fields.get("root", ""),
            nodes_revision=fields.get("nodes_revision", NODES_REVISION),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TakeOverRefused(f"what the daemon before kept is not a record: {error!r}") from error
    if record.nodes_revision != NODES_REVISION:
        raise TakeOverRefused(
            f"version {record.version} numbered nodes by revision {record.nodes_revision}, this one by {NODES_REVISION}"
        )
    if record.inode_revision != INODE_REVISION:
        raise TakeOverRefused(
            f"version {record.version} gave inode numbers of revision {record.inode_revision}, this one gives "
            f"{INODE_REVISION}"
        )
    return record


def root_mark(root: Path) -> str:
    """What tells a root directory from another one, or from a copy: layers and files have numbers of their own in each, and
    running overlays hold its directories.

    Raises:
        TakeOverRefused: it cannot be looked at.
    """
    marks = []
    for name in ("state.db", "objects", "late"):
        try:
            status = (root / name).stat()
        except OSError as error:
            raise TakeOverRefused(f"{root / name}: {error.strerror}") from error
        marks.append(f"{status.st_dev}:{status.st_ino}")
    return " ".join(marks)


def check_agreement(kept: bytes, reply: bytes) -> None:
    """Compare libfuse's reply to INIT with the one that the kernel goes by.

    Raises:
        TakeOverRefused: they differ in what decides about buffers or the form of replies.
    """
    before, now = parse_init_reply(kept), parse_init_reply(reply)
    if (before.max_write, before.max_pages) != (now.max_write, now.max_pages):
        raise TakeOverRefused(
            f"this libfuse agrees to requests of {now.max_write} bytes and {now.max_pages} pages, the kernel was told "
            f"{before.max_write} and {before.max_pages}"
        )
    if (before.flags ^ now.flags) & _DECIDING:
        raise TakeOverRefused(f"this libfuse agrees to flags {now.flags:#x}, the kernel was told {before.flags:#x}")
