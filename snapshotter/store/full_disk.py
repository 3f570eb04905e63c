"""Room for the databases where the disk is full: only a daemon that runs can free any, so it must be able to start."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.disk import disk_bytes

T = TypeVar("T")

ROOM = 16 << 20
"""Bytes that opening and the first writes take at most, with some to spare."""

CACHE = ("partial", "unproven", "objects")
"""Directories of a root whose files the network has too, those first that hold the least verified content."""

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
        log.warning("%s; %d bytes of the cache were deleted to make room for it", error, freed)
    return opening()


def _free(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def _delete(root: Path, wanted: int) -> int:
    """Delete cached files, the largest of each directory first, until `wanted` bytes are gone; returns how many are."""
    freed = 0
    for name in CACHE:
        for size, path in sorted(_files(root / name), reverse=True):
            if freed >= wanted:
                return freed
            try:
                if path.suffix == ".data":
                    # First what says which of its chunks are verified: it must not speak of another file.
                    path.with_suffix(".map").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be deleted: %s", path, error.strerror)
            else:
                freed += size
    return freed


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Path of each regular file below `folder`, and the bytes that its deletion frees; symbolic links are not followed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield disk_bytes(status) if status.st_nlink == 1 else 0, path
