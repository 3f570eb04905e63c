"""Reads of cached files: on the loop while the disk is quick, in worker threads while it is not.

A hop to a thread and back costs as much as a quick disk takes for a megabyte: on one that reads 2.5 GB/s files in order
came at 0.65 times native speed through threads and at 0.78 on the loop. A slow disk must not stop the loop, so one slow
read sends those that follow to threads for a while.
"""

import os
import time
from collections.abc import Callable

import trio

from snapshotter.errors import StoreError

SLOW_S = 0.005
"""A read that takes longer shows a disk that the loop must not wait for."""

AVOID_FOR_S = 30.0
"""So long reads of what is not in the page cache go to threads after a slow one."""


class DiskReads:
    """The node's cache disk, as readers see it. Used on the trio thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads_until = float("-inf")

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of a file from `offset`, in a buffer of their own.

        Raises StoreError if the disk fails or the file is shorter.
        """
        began = self._clock()
        if began < self._threads_until and not cached(fd, offset, size):
            data = await trio.to_thread.run_sync(pread, fd, offset, size)
        else:
            data = pread(fd, offset, size)
        if self._clock() - began > SLOW_S:
            self._threads_until = self._clock() + AVOID_FOR_S
        return data


def cached(fd: int, offset: int, size: int) -> bool:
    """Whether the last byte of a range is in the page cache; False where the kernel cannot say."""
    try:
        return os.preadv(fd, [bytearray(1)], offset + size - 1, os.RWF_NOWAIT) == 1
    except OSError:
        # EAGAIN: it is not. Others: RWF_NOWAIT needs kernel 4.14 and a file system that knows it.
        return False


def pread(fd: int, offset: int, size: int) -> bytes:
    """Exactly `size` bytes of a file. Raises StoreError if the disk fails or the file is shorter."""
    try:
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise StoreError("a file of the cache is shorter than its size; run `snapshotter cache verify`")
            data += more
    except OSError as error:
        raise StoreError(f"reading a file of the cache failed: {error.strerror}; look at the node's disk") from error
    return data
