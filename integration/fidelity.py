"""Compares two trees in everything that stat, listxattr, readlink and read show.

Not compared: inode numbers themselves (their grouping is), the size of folders and the blocks behind a file, which
belong to a file system and not to an image; and of the root the modification time, which containerd takes from no
layer, and the link count, which tells an overlay from a bind mount. Entries that a lazy format adds to a layer for itself are left out on both sides.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PIECE = 1 << 20
OF_THE_MOUNT = {"mtime", "links"}
# An unpacked layer has them as ordinary files; a lazy mount hides them.
FORMAT_ENTRIES = frozenset({b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"})


class Clock(StrEnum):
    """How closely modification times must agree."""

    NANOSECONDS = "nanoseconds"
    SECONDS = "seconds"  # a writer that follows RFC 3339 without fractions rounds to the nearest second


@dataclass(frozen=True, slots=True)
class Difference:
    """One property in which the trees differ."""

    path: bytes
    what: str
    left: object
    right: object

    def __str__(self) -> str:
        return (
            f"{self.path.decode('utf-8', 'backslashreplace')}: {self.what}: {_short(self.left)} ≠ {_short(self.right)}"
        )


def differences(left: Path, right: Path, clock: Clock = Clock.NANOSECONDS) -> list[Difference]:
    """Everything in which the tree below `right` differs from the one below `left`; the roots themselves included."""
    here, there = _tree(os.fsencode(left)), _tree(os.fsencode(right))
    found = [Difference(path, "exists", path in here, path in there) for path in sorted(here.keys() ^ there.keys())]
    for path in sorted(here.keys() & there.keys()):
        found += _compare(path, here[path], there[path], clock)
    groups, others = _link_groups(here), _link_groups(there)
    found += [
        Difference(path, "hard links", groups.get(path), others.get(path))
        for path in sorted(groups.keys() | others.keys())
        if groups.get(path) != others.get(path)
    ]
    return found


def report(found: list[Difference], limit: int = 40) -> str:
    """One line for each difference, at most `limit` of them."""
    lines = [str(difference) for difference in found[:limit]]
    if len(found) > limit:
        lines.append(f"… and {len(found) - limit} more")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: bytes
    status: os.stat_result


def _tree(root: bytes) -> dict[bytes, _Entry]:
    """Every entry below `root` by its path relative to it; the root is "."."""
    found = {b".": _Entry(root, os.lstat(root))}
    waiting = [b"."]
    while waiting:
        folder = waiting.pop()
        names = os.listdir(os.path.join(root, folder))
        for name in names if folder != b"." else set(names) - FORMAT_ENTRIES:
            path = os.path.join(folder, name)
            entry = _Entry(os.path.join(root, path), os.lstat(os.path.join(root, path)))
            found[path] = entry
            if stat.S_ISDIR(entry.status.st_mode):
                waiting.append(path)
    return found


def _compare(path: bytes, left: _Entry, right: _Entry, clock: Clock) -> Iterator[Difference]:
    one, other = left.status, right.status
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        yield Difference(path, "type", stat.filemode(one.st_mode), stat.filemode(other.st_mode))
        return
    pairs = {
        "mode": (oct(one.st_mode), oct(other.st_mode)),
        "owner": ((one.st_uid, one.st_gid), (other.st_uid, other.st_gid)),
        "mtime": (_time(one, clock), _time(other, clock)),
        "links": (one.st_nlink, other.st_nlink),
        "xattrs": (_xattrs(left.path), _xattrs(right.path)),
    }
    if stat.S_ISCHR(one.st_mode) or stat.S_ISBLK(one.st_mode):
        pairs["device"] = (one.st_rdev, other.st_rdev)
    if stat.S_ISLNK(one.st_mode):
        pairs["target"] = (os.readlink(left.path), os.readlink(right.path))
    if not stat.S_ISDIR(one.st_mode):
        pairs["size"] = (one.st_size, other.st_size)
    for what, (mine, yours) in pairs.items():
        if mine != yours and not (path == b"." and what in OF_THE_MOUNT):
            yield Difference(path, what, mine, yours)
    if stat.S_ISREG(one.st_mode) and one.st_size == other.st_size:
        position = _first_different_byte(left.path, right.path)
        if position is not None:
            yield Difference(path, "content", f"differs at byte {position}", "")


def _time(status: os.stat_result, clock: Clock) -> int:
    return status.st_mtime_ns if clock is Clock.NANOSECONDS else (status.st_mtime_ns + 500_000_000) // 1_000_000_000


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _first_different_byte(left: bytes, right: bytes) -> int | None:
    position = 0
    with open(left, "rb", buffering=0) as one, open(right, "rb", buffering=0) as other:
        while True:
            mine, yours = one.read(PIECE), other.read(PIECE)
            if mine != yours:
                return position + next((at for at, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b), 0)
            if not mine:
                return None
            position += len(mine)


def _link_groups(tree: dict[bytes, _Entry]) -> dict[bytes, tuple[bytes, ...]]:
    """For each path that shares its inode with others of the tree, all paths of that inode."""
    names = defaultdict(list)
    for path, entry in tree.items():
        if not stat.S_ISDIR(entry.status.st_mode):
            names[entry.status.st_dev, entry.status.st_ino].append(path)
    return {path: tuple(sorted(group)) for group in names.values() if len(group) > 1 for path in group}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}…"
