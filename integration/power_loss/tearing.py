"""What else a power loss may do to a root: to whatever no sync has covered, beyond what this kernel's file system did."""

import os
import random
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from snapshotter.errors import FormatError
from snapshotter.store.cache_db import FileStamp
from snapshotter.store.identity import decode_identity
from snapshotter.store.partial_map import MAGIC, RECORD_SIZE, MapState, Record, parse_map

# Metadata that is compared with a hash before it is believed, and made again.
_VALUE = struct.Struct("<Q")
CHECKED = ("erofs/*.erofs", "index/*.idx", "manifests/*.json")


def tear(root: Path, dice: random.Random, boot: int) -> dict[str, int]:
    """Zero or cut off ends of files that no sync has covered; how many of each kind. `boot` is no boot that wrote them."""
    covered = _covered(root)
    torn = {"objects": 0, "chunks": 0, "maps": 0, "metadata": 0}
    for path in sorted(root.glob("objects/_*/*/*/*")):
        status = path.stat()
        if (status.st_ino, status.st_mtime_ns) not in covered and dice.random() < 0.5:
            torn["objects"] += _tear(path, dice)
    for path, state in maps(root, boot):
        _tear_chunks(path.with_suffix(".data"), state, dice, torn)
        if state.unsynced and dice.random() < 0.3:
            torn["maps"] += _tear(path, dice, after=_synced(path))
    for pattern in CHECKED:
        for path in sorted(root.glob(pattern)):
            if dice.random() < 0.4:
                torn["metadata"] += _tear(path, dice)
    return torn


def maps(root: Path, boot: int) -> Iterator[tuple[Path, MapState]]:
    """The maps of all partial files, read as a daemon of this boot does."""
    for path in sorted(root.glob("partial/*/*.map")):
        try:
            yield path, parse_map(path.read_bytes(), path.stem, boot)
        except (FormatError, FileNotFoundError):  # torn, or complete by now
            continue


def _tear_chunks(data: Path, state: MapState, dice: random.Random, torn: dict[str, int]) -> None:
    for ordinal in state.doubtful:
        if data.exists() and dice.random() < 0.5:
            offset, size, _ = state.identity.chunks[ordinal]
            with open(data, "r+b") as file:
                file.seek(offset + dice.randrange(size))
                file.write(bytes(min(4096, offset + size - file.tell())))
            torn["chunks"] += 1


def _tear(path: Path, dice: random.Random, after: int = 0) -> int:
    size = path.stat().st_size
    if size <= after:
        return 0
    start = dice.randrange(after, size)
    mode = path.stat().st_mode & 0o777
    path.chmod(0o600)
    os.truncate(path, start)
    if dice.random() < 0.6:
        os.truncate(path, size)  # zeros: the size is on the disk, the bytes are not
    path.chmod(mode)
    return 1


def _synced(path: Path) -> int:
    """How much of a map is on the disk: what a record of a sync says, and the record is after it."""
    data = path.read_bytes()
    start = len(MAGIC) + decode_identity(data[len(MAGIC) :])[1]
    records = range(start, len(data) - RECORD_SIZE + 1, RECORD_SIZE)
    return max((_VALUE.unpack_from(data, at + 4)[0] for at in records if data[at] == Record.SYNCED), default=0)


def _covered(root: Path) -> set[FileStamp]:
    """What cache.db vouches for; read from a copy, since opening it writes."""
    with tempfile.TemporaryDirectory() as place:
        for suffix in ("", "-wal"):
            path = root / f"cache.db{suffix}"
            if path.exists():
                (Path(place) / path.name).write_bytes(path.read_bytes())
        connection = sqlite3.connect(Path(place) / "cache.db")
        try:
            return set(connection.execute("SELECT inode, mtime_ns FROM covered"))
        except sqlite3.DatabaseError:
            return set()
        finally:
            connection.close()
