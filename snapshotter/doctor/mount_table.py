"""The kernel's tables of mounts as the checks read them. No path on a mount is opened."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.plane.mounts import Mount, parse_mountinfo

NETWORK_TYPES: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "9p",
        "afs",
        "lustre",
        "gpfs",
        "beegfs",
        "virtiofs",
        "ocfs2",
        "gfs2",
    }
)
"""File systems whose bytes lie on another machine, or are shared with one; FUSE's count as well."""


@dataclass(frozen=True, slots=True)
class Place:
    """The mount on which a path lies. `propagation` is `shared`, `slave`, `shared and slave` or `private`."""

    mount: Mount
    propagation: str

    @property
    def is_remote(self) -> bool:
        """Whether it may lie on another machine."""
        return self.mount.fs_type in NETWORK_TYPES or self.mount.fs_type.startswith("fuse")


def existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def place_of(path: Path, table: Path) -> Place | None:
    """The mount on which `path`, or what exists above it, lies; None where the table has none.

    Source: proc(5), /proc/pid/mountinfo: the optional fields before the hyphen name peer group and master.
    """
    wanted = os.fsencode(os.path.realpath(existing(path)))
    best: Place | None = None
    for line in table.read_bytes().splitlines():
        for mount in parse_mountinfo(line):
            below = mount.mount_point.rstrip(b"/") + b"/"
            inside = wanted == mount.mount_point or (wanted + b"/").startswith(below)
            if inside and (best is None or len(mount.mount_point) >= len(best.mount.mount_point)):
                best = Place(mount, _propagation(line))
    return best


def _propagation(line: bytes) -> str:
    optional = line.partition(b" - ")[0].split(b" ")[6:]
    kinds = [name for name, mark in (("shared", b"shared:"), ("slave", b"master:")) if _has(optional, mark)]
    return " and ".join(kinds) or "private"


def _has(fields: list[bytes], mark: bytes) -> bool:
    return any(field.startswith(mark) for field in fields)
