"""Whether the cache's disk takes what is written: what it refused last, until as much could be written again."""

import errno
import os
import sqlite3
import threading

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.disk import as_store_error, write_all

ROOM = 16 << 20
"""Bytes that leave the cache at a time when its disk is full, whoever filled it."""

TRIAL_LEAST = 64 << 10
TRIAL_MOST = 4 << 20
"""What is written to see whether the disk takes writes again: as much as it refused, between these."""

SICK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ESHUTDOWN})
"""Errors that say something of the disk or its file system, not of the one file."""


_SICK_DATABASE = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)


class DiskHealth:
    """What the disk refused last. Safe from any thread; asking costs nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._refusal: StoreError | None = None
        self._size = 0

    def refused(self, error: StoreError, size: int = 0) -> None:
        """A write of `size` bytes ended so; what does not concern the disk as a whole is passed over."""
        if _concerns_disk(error.__cause__):
            with self._lock:
                self._refusal, self._size = error, min(max(size, TRIAL_LEAST, self._size), TRIAL_MOST)

    def worked(self, size: int) -> None:
        """A write of `size` bytes went through: if that is as much as was refused, the disk is well again."""
        if self._refusal is not None and size >= self._size:
            with self._lock:
                self._refusal, self._size = None, 0

    @property
    def refusal(self) -> StoreError | None:
        """What the disk refused last; None while it takes everything."""
        return self._refusal

    @property
    def missing_room(self) -> int:
        """Bytes that should leave since the disk is full; 0 if it is not."""
        return max(ROOM, 2 * self._size) if isinstance(self._refusal, StoreFull) else 0

    def check(self) -> None:
        """Raise StoreError as long as the disk takes nothing: not every chunk must try."""
        refusal = self._refusal
        if refusal is not None:
            raise type(refusal)(str(refusal))

    def try_again(self, directory: int) -> None:
        """See whether the disk that `directory` lies on takes as many bytes as it refused. Slow."""
        size = self._size
        if self._refusal is None:
            return
        try:
            _write_nameless(directory, size)
        except OSError as error:
            self.refused(_refusal_of(error), size)
        else:
            self.worked(size)


def _concerns_disk(cause: BaseException | None) -> bool:
    if isinstance(cause, OSError):
        return cause.errno in SICK
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SICK_DATABASE


def _refusal_of(error: OSError) -> StoreError:
    made = as_store_error(error, "write to the cache")
    made.__cause__ = error
    return made


def _write_nameless(directory: int, size: int) -> None:
    """Write and sync a file without a name: nothing of it can be left behind.

    Raises:
        OSError: the disk refused.
    Source: open(2), O_TMPFILE.
    """
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # a file system without: the next chunk will tell
            return
        raise
    try:
        # No hole and no run of zeros: some file systems would store nothing.
        write_all(fd, os.urandom(size), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
