"""Room for the databases where the disk is full: only a daemon that runs can free any, so it must be able to start."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.disk import disk_bytes

T = TypeVar("T")

ROOM = 16 << 20
"""Bytes that opening and the first writes take at most, with some to spare."""

CACHE = ("late", "partial", "unproven", "objects")
"""Directories of a root whose files the network has too, those first that hold the least verified content.

`late` leads: a file with a name there as well keeps its bytes when it leaves `objects`.
"""

MADE_ROOM = "made-room"
"""File of a root that says: cached files were deleted which cache.db may still have on record."""

log = logging.getLogger(__name__)


def open_with_room(root: Path, opening: Callable[[], T]) -> T:
    """Return what `opening` gives; if it fails for want of room, once more after some of the cache was deleted.

    The caller holds the root's lock, and nothing has the cache open.

    Raises:
        StoreError: as `opening`.
    """
    try:
        return opening()
    except StoreError as error:
        # SQLite calls a full disk an I/O error where it cannot write what lies beside the database.
        if not isinstance(error, StoreFull) and _free(root) >= ROOM:
            raise
        freed = _delete(root, ROOM)
        if not freed:
            raise
        with suppress(OSError):
            os.close(os.open(root / MADE_ROOM, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        log.warning("%s; %d bytes of the cache were deleted to make room for it", error, freed)
    return opening()


def _free(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def _delete(root: Path, wanted: int) -> int:
    """Delete cached files, the largest of each directory first, until `wanted` bytes are gone; returns how many are."""
    freed = 0
    for name in CACHE:
        for _, path in sorted(_files(root / name), reverse=True):
            if freed >= wanted:
                return freed
            try:
                # Now: of a file with several names only the last one holds the bytes.
                size = _held(path.lstat())
                if path.suffix == ".data":
                    # First what says which of its chunks are verified: it must not speak of another file.
                    path.with_suffix(".map").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            except FileNotFoundError:  # a map that went with its file
                continue
            except OSError as error:
                # Without the folders between, one of which is only for root to know.
                log.warning("%s in %s cannot be deleted: %s", path.name, root / name, error.strerror)
            else:
                freed += size
    return freed


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Path of each regular file below `folder`, and its bytes on disk; symbolic links are not followed."""
    if folder.is_symlink():
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield disk_bytes(status), path


def _held(status: os.stat_result) -> int:
    """Bytes that the deletion of one name frees."""
    return disk_bytes(status) if status.st_nlink == 1 else 0
