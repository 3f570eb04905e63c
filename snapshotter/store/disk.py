"""What the store needs of the kernel beyond `os`: syncfs, holes, and disk errors in our own words."""

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from snapshotter.errors import StoreError, StoreFull

READ_SIZE = 1 << 20
BLOCK = 4096
_ZEROS = bytes(READ_SIZE)
# Flags of fallocate(2); punching must keep the size.
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` while doing `what` into `StoreFull` (no room, over the disk quota) or `StoreError`."""
    try:
        yield
    except OSError as error:
        raise as_store_error(error, what) from error


def as_store_error(error: OSError, what: str) -> StoreError:
    """The `StoreFull` or `StoreError` that says `what` could not be done."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StoreFull(f"cannot {what}: {reason}; free space there or lower cache.quota")
    if error.errno == errno.EIO:
        return StoreError(f"cannot {what}: {reason}; the disk or its file system is failing, see the kernel log")
    return StoreError(f"cannot {what}: {reason}")


def syncfs(fd: int) -> None:
    """Write the whole file system of `fd` to disk, and wait.

    Raises:
        StoreError: some write since the last call was lost (reported since Linux 5.8).
    Source: syncfs(2).
    """
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise as_store_error(OSError(code, os.strerror(code)), "sync the cache's file system")


def zero_range(fd: int, offset: int, size: int) -> None:
    """Make a range of a file read as zeros, as a hole where the file system can.

    Raises:
        OSError: the disk refused.
    """
    try:
        if os.lseek(fd, offset, os.SEEK_DATA) >= offset + size:
            return
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data from here to the end of the file
            return
        raise
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _libc.fallocate(fd, mode, offset, size) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    view = memoryview(_ZEROS)
    while size > 0:
        written = os.pwrite(fd, view[: min(size, READ_SIZE)], offset)
        offset += written
        size -= written


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`: a disk about to fill takes a part first and says ENOSPC the next time.

    Raises:
        OSError: the disk refused.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def hash_range(fd: int, offset: int, size: int, hasher: "hashlib._Hash | None" = None) -> bytes | None:
    """sha256 of a range of a file (continuing `hasher` when given); None when the file ends before it does.

    Raises:
        OSError: the disk refused.
    """
    hasher = hashlib.sha256() if hasher is None else hasher
    while size > 0:
        data = os.pread(fd, min(size, READ_SIZE), offset)
        if not data:
            return None
        hasher.update(data)
        offset += len(data)
        size -= len(data)
    return hasher.digest()


@lru_cache(maxsize=256)
def hash_zeros(size: int) -> bytes:
    """sha256 of `size` zero bytes."""
    hasher = hashlib.sha256()
    view = memoryview(_ZEROS)
    while size > 0:
        hasher.update(view[: min(size, READ_SIZE)])
        size -= READ_SIZE
    return hasher.digest()


def disk_bytes(status: os.stat_result) -> int:
    """Bytes a file takes on disk, as du counts them; some file systems know only after writing back."""
    return status.st_blocks * 512 or -(-status.st_size // BLOCK) * BLOCK
