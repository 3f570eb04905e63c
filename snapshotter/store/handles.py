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
    """A complete, verified object that is open. `fd` stays this object until `release()`, even if it is evicted meanwhile.

    Only `fd`, `size` and `release` are for users; the rest is the cache's.
    """

    __slots__ = ("cache", "deleted", "disk_bytes", "fd", "kept", "size", "users")

    def __init__(self, cache: "HandleCache", fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.size = status.st_size
        self.disk_bytes = disk_bytes(status)
        self.cache = cache
        self.users = 1
        self.kept = True
        self.deleted = False

    def release(self) -> None:
        """End the use of `fd`; exactly once for each `acquire`."""
        self.cache.release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cache.release(self)


class HandleCache:
    """At most `limit` idle and used descriptors by (domain, digest), the least recently used leaves first.

    A descriptor in use is closed by its last `release`. A closed number may be another file's at once, so a bare
    number handed out would one day read the wrong file.
    """

    def __init__(self, limit: int, on_deleted_open: Callable[[int], None]) -> None:
        """`on_deleted_open` hears how many bytes of removed files became (+) or ceased to be (-) held open."""
        self._limit = limit
        self._on_deleted_open = on_deleted_open
        self._lock = threading.Lock()  # guards _open and `users`, `kept` and `deleted` of every handle
        self._open: OrderedDict[Key, OpenObject] = OrderedDict()

    def get(self, key: Key) -> OpenObject | None:
        """A use of the cached handle, or None."""
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                handle.users += 1
                self._open.move_to_end(key)
            return handle

    def add(self, key: Key, fd: int, status: os.stat_result) -> OpenObject:
        """Keep `fd`, now the cache's to close, under `key`; returns a use of what the cache has for the key."""
        unused = None
        with self._lock:
            handle = self._open.get(key)
            if handle is not None:
                handle.users += 1
                unused = fd
            else:
                handle = self._open[key] = OpenObject(self, fd, status)
                if len(self._open) > self._limit:
                    unused = self._let_go(self._open.popitem(last=False)[1])
        _close(unused)
        return handle

    def drop(self, key: Key) -> bool:
        """Forget the handle of an object that was removed from disk; whether somebody uses it still."""
        unused = None
        with self._lock:
            handle = self._open.pop(key, None)
            if handle is not None:
                handle.deleted = True
                unused = self._let_go(handle)
        _close(unused)
        return handle is not None and unused is None

    def release(self, handle: OpenObject) -> None:
        """End one use; see `OpenObject.release`."""
        with self._lock:
            handle.users -= 1
            if handle.users or handle.kept:
                return
        os.close(handle.fd)
        if handle.deleted:
            self._on_deleted_open(-handle.disk_bytes)

    def close(self) -> None:
        """Let go of everything; descriptors in use close with their last release."""
        with self._lock:
            unused = [self._let_go(handle) for handle in self._open.values()]
            self._open.clear()
        for fd in unused:
            _close(fd)

    def _let_go(self, handle: OpenObject) -> int | None:
        """Take the cache's own hold off a handle; the descriptor to close, unless a user still needs it."""
        handle.kept = False
        if handle.users == 0:
            return handle.fd
        if handle.deleted:
            self._on_deleted_open(handle.disk_bytes)
        return None


def _close(fd: int | None) -> None:
    """Outside the lock: closing the last descriptor of a large removed file frees its blocks, and readers would wait."""
    if fd is not None:
        os.close(fd)
