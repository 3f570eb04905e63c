"""Open objects: a bounded cache of descriptors that are never closed under a reader."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from snapshotter.store.disk import disk_bytes

Key = tuple[str, bytes]


class OpenObject:
    """A complete, verified object that is open. `fd` stays this object until `release()`, even if the object is evicted meanwhile."""

    __slots__ = ("_cache", "_deleted", "_disk_bytes", "_kept", "_users", "fd", "size")

    def __init__(self, cache: "HandleCache", fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.size = status.st_size
        self._disk_bytes = disk_bytes(status)
        self._cache = cache
        self._users = 1
        self._kept = True
        self._deleted = False

    def release(self) -> None:
        """End the use of `fd`; exactly once for each `acquire`."""
        self._cache.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.release(self)


class HandleCache:
    """At most `limit` idle and used descriptors by (domain, digest), the least recently used leaves first.

    A descriptor in use is closed by its last `release`. A closed number may be another file's at once, so a bare
    number handed out would one day read the wrong file.
    """

    def __init__(self, limit: int, on_deleted_open: Callable[[int], None]) -> None:
        """`on_deleted_open` hears how many bytes of removed files became (+) or ceased to be (-) held open."""
        self._limit = limit
        self._on_deleted_open = on_deleted_open
        self._lock = threading.Lock()  # guards _open and the private fields of every handle
        self._open: OrderedDict[Key, OpenObject] = OrderedDict()

    def get(self, key: Key) -> OpenObject | None:
        """A use of the cached handle, or None."""
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                handle._users += 1
                self._open.move_to_end(key)
            return handle

    def add(self, key: Key, fd: int, status: os.stat_result) -> OpenObject:
        """Keep `fd`, now the cache's to close, under `key`; returns a use of what the cache has for the key."""
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                handle._users += 1
                os.close(fd)
                return handle
            handle = self._open[key] = OpenObject(self, fd, status)
            if len(self._open) > self._limit:
                _, oldest = self._open.popitem(last=False)
                self._let_go(oldest)
            return handle

    def drop(self, key: Key) -> None:
        """Forget the handle of an object that was removed from disk."""
        with self._lock:
            handle = self._open.pop(key, None)
            if handle is not None:
                handle._deleted = True
                self._let_go(handle)

    def release(self, handle: OpenObject) -> None:
        """End one use; see `OpenObject.release`."""
        with self._lock:
            handle._users -= 1
            if handle._users == 0 and not handle._kept:
                self._close(handle)

    def close(self) -> None:
        """Let go of everything; descriptors in use close with their last release."""
        with self._lock:
            while self._open:
                self._let_go(self._open.popitem()[1])

    def _let_go(self, handle: OpenObject) -> None:
        handle._kept = False
        if handle._users == 0:
            os.close(handle.fd)
        elif handle._deleted:
            self._on_deleted_open(handle._disk_bytes)

    def _close(self, handle: OpenObject) -> None:
        os.close(handle.fd)
        if handle._deleted:
            self._on_deleted_open(-handle._disk_bytes)
