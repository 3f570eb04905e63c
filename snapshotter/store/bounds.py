"""How much the cache may hold: quota and free-space floor, against what it holds and what its disk has left."""

import os

from snapshotter.config import CacheConfig
from snapshotter.errors import StoreFull
from snapshotter.store.disk import disk_errors
from snapshotter.store.eviction import bytes_to_free, has_room, room_for
from snapshotter.store.health import DiskHealth
from snapshotter.store.tally import Tally


class Bounds:
    """Looks at the file system of the directory `fd`. Any method raises StoreError if that cannot be looked at."""

    def __init__(self, limits: CacheConfig, tally: Tally, health: DiskHealth, fd: int) -> None:
        self._limits = limits
        self._health = health
        self._tally = tally
        self._fd = fd

    def excess(self) -> int:
        """Bytes that must leave; 0 if none. A full disk wants some gone also where no limit is set."""
        used = self._tally.used()
        return max(bytes_to_free(used, self._free(), self._limits), min(self._health.missing_room, used))

    def has_room(self, size: int) -> bool:
        """Whether the cache would be no fuller than its low-water mark with `size` bytes more."""
        if self._health.refusal is not None:
            return False
        return has_room(size, self._tally.used(), self._free(), self._limits)

    def check(self, size: int) -> None:
        """Raise StoreFull if `size` bytes more pass a limit, StoreError while the disk takes nothing."""
        self._health.check()
        reason = room_for(size, self._tally.used(), self._free(), self._limits)
        if reason is not None:
            raise StoreFull(f"cannot cache {size} bytes more: {reason}")

    def _free(self) -> int:
        with disk_errors("look at the cache's file system"):
            status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize
