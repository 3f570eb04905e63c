"""Names of objects: given, shared between domains and taken away, each change together with its accounting."""

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from snapshotter.store.cache_db import FileStamp, Key
from snapshotter.store.disk import disk_bytes
from snapshotter.store.handles import HandleCache
from snapshotter.store.identity import FileIdentity
from snapshotter.store.tally import Tally
from snapshotter.store.tree import SHARDS, ObjectTree

VERIFIED_MODE = 0o400
# Kept in the mode because it must outlive cache.db: the name is no hash, so there is nothing to check content against.
DERIVED_MODE = 0o600


class ObjectInfo(NamedTuple):
    """An object or a partial file as a listing shows it; `size` is the file's, `disk_bytes` what it takes up."""

    domain: str
    digest: bytes
    size: int
    disk_bytes: int


class Placement:
    """`objects` (verified) and `unproven` (perhaps torn by a power loss), their tally, and what no syncfs covered yet."""

    def __init__(self, objects: ObjectTree, unproven: ObjectTree, tally: Tally, handles: HandleCache) -> None:
        self.objects = objects
        self.unproven = unproven
        self.tally = tally
        self._handles = handles
        self._lock = threading.Lock()  # guards the three below
        self._domains = set(objects.domains())
        self._dirty: dict[Key, FileStamp] = {}
        self._removed: set[Key] = set()

    def place(self, domain: str, identity: FileIdentity, directory: int, name: str, fd: int) -> None:
        """Give the verified file `name`, open as `fd`, its object name, or drop it for one that is there already.

        Content that another domain has is linked instead of kept twice; only now, since this domain has fetched it.

        Raises:
            OSError: the disk refused.
        """
        digest = identity.digest
        os.fchmod(fd, DERIVED_MODE if identity.derived else VERIFIED_MODE)
        status = os.fstat(fd)
        with self.tally.lock_of(digest):
            self._forget_unproven(domain, digest)
            present = self.objects.status(domain, digest)
            if present is not None:
                if present.st_size == identity.size and not is_derived(present):
                    os.unlink(name, dir_fd=directory)
                    return
                self._unlink(self.objects, domain, digest, present)
            linked = None if identity.derived else self._link(domain, digest, identity.size)
            if linked is not None:
                os.unlink(name, dir_fd=directory)
            else:
                self.objects.place(directory, name, domain, digest)
            self._entered(domain, digest, linked or status, linked=linked is not None)

    def settle(self, domain: str, digest: bytes, *, good: bool) -> None:
        """The proof of an object was taken: it becomes one, or it goes.

        Raises:
            OSError: the disk refused.
        """
        with self.tally.lock_of(digest):
            status = self.unproven.status(domain, digest)
            if status is None:
                return
            if not good or self.objects.status(domain, digest) is not None:
                self._forget_unproven(domain, digest)
                return
            self.unproven.move_to(self.objects, domain, digest)
            self.tally.change_unproven(-1)
            with self._lock:
                self._domains.add(domain)
                self._dirty[domain, digest] = (status.st_ino, status.st_mtime_ns)

    def remove(self, domain: str, digest: bytes) -> int | None:
        """Remove an object, proven or not; bytes on disk that this frees (0: other domains have it), None if it was not here.

        Raises:
            OSError: the disk refused.
        """
        with self.tally.lock_of(digest):
            freed = self._forget_unproven(domain, digest)
            status = self.objects.status(domain, digest)
            if status is not None:
                freed = (freed or 0) + self._unlink(self.objects, domain, digest, status)
            return freed

    def domains(self) -> set[str]:
        """Domains that have objects."""
        return set(self.objects.domains()) | set(self.unproven.domains())

    def iterate(self, domain: str) -> Iterator[ObjectInfo]:
        """The domain's objects, also those that await proof; one that comes or goes meanwhile may be missed."""
        for shard in SHARDS:
            for tree in (self.objects, self.unproven):
                for digest, status in tree.shard(domain, shard):
                    yield ObjectInfo(domain, digest, status.st_size, disk_bytes(status))

    def scan(self, number: int) -> Iterable[tuple[str, os.stat_result]]:
        """Every file of one shard over all domains, for `Tally.recount`."""
        for tree in (self.objects, self.unproven):
            for domain in tree.domains():
                for _, status in tree.shard(domain, SHARDS[number]):
                    yield domain, status

    @property
    def dirty(self) -> bool:
        """Something came or went since the last sync."""
        return bool(self._dirty or self._removed)

    def begin_sync(self) -> tuple[dict[Key, FileStamp], set[Key]]:
        """What came and went so far: a syncfs that starts now covers it."""
        with self._lock:
            taken = self._dirty, self._removed
            self._dirty, self._removed = {}, set()
            return taken

    def sync_failed(self, came: dict[Key, FileStamp], went: set[Key]) -> None:
        """Take back what `begin_sync` gave."""
        with self._lock:
            self._dirty = came | self._dirty
            self._removed |= went

    def _entered(self, domain: str, digest: bytes, status: os.stat_result, *, linked: bool) -> None:
        self.tally.added(domain, digest, status, linked=linked)
        with self._lock:
            self._domains.add(domain)
            self._dirty[domain, digest] = (status.st_ino, status.st_mtime_ns)

    def _link(self, domain: str, digest: bytes, size: int) -> os.stat_result | None:
        with self._lock:
            others = self._domains - {domain}
        for other in others:
            status = self.objects.status(other, digest)
            if status is not None and status.st_size == size and not is_derived(status):
                return status if self.objects.link(other, domain, digest) else None
        return None

    def _unlink(self, tree: ObjectTree, domain: str, digest: bytes, status: os.stat_result) -> int:
        tree.unlink(domain, digest)
        freed = self.tally.removed(domain, digest, status)
        if tree is self.objects:
            # After the unlink: a reader that opens the file later sees that it has no name, and does not keep it.
            self._handles.drop((domain, digest))
            with self._lock:
                self._dirty.pop((domain, digest), None)
                self._removed.add((domain, digest))
        return freed

    def _forget_unproven(self, domain: str, digest: bytes) -> int | None:
        if not self.tally.unproven:
            return None
        status = self.unproven.status(domain, digest)
        if status is None:
            return None
        freed = self._unlink(self.unproven, domain, digest, status)
        self.tally.change_unproven(-1)
        return freed


def is_derived(status: os.stat_result) -> bool:
    """Whether an object's name says nothing of its content."""
    return stat.S_IMODE(status.st_mode) == DERIVED_MODE
