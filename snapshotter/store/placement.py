"""Names of objects: given, shared between domains and taken away, each change together with its accounting."""

import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from snapshotter.store.cache_db import FileStamp, Key
from snapshotter.store.disk import disk_bytes
from snapshotter.store.handles import HandleCache
from snapshotter.store.held import HeldFiles
from snapshotter.store.identity import FileIdentity, large_name
from snapshotter.store.tally import Tally
from snapshotter.store.tree import SHARDS, ObjectTree

log = logging.getLogger(__name__)

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
        self.held = HeldFiles(objects.fd)
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
        os.fchmod(fd, DERIVED_MODE if identity.derived else VERIFIED_MODE)
        with self.tally.lock_of(identity.digest):
            self._place(domain, identity, directory, name, os.fstat(fd))
            try:
                self._name_large(domain, identity)
            except OSError as error:
                # The object is good; the gate tries again when somebody asks for it.
                log.warning("file %s has no name by its chunks yet: %s", identity.digest.hex(), error)

    def name_large(self, domain: str, identity: FileIdentity) -> bool:
        """Whether the object of a file is here; one of several chunks then has the name by which an overlay finds it.

        Raises:
            OSError: the disk refused.
        """
        with self.tally.lock_of(identity.digest):
            return self._name_large(domain, identity)

    def tidy_large(self, domain: str) -> None:
        """Remove the names by identity that have lost their object: their bytes are in no account.

        Raises:
            OSError: the disk refused.
        """
        for shard in SHARDS:
            for name in self.objects.large_names(domain, shard):
                digest = bytes.fromhex(name[:64])
                with self.tally.lock_of(digest):
                    named, own = self.objects.named(domain, name), self.objects.status(domain, digest)
                    stale = own is None or named is None or own.st_ino != named.st_ino or name.endswith(".tmp")
                    if stale:
                        self.objects.unlink_named(domain, name)

    def _name_large(self, domain: str, identity: FileIdentity) -> bool:
        found = self.objects.status(domain, identity.digest)
        if found is None or found.st_size != identity.size:
            return False
        if len(identity.chunks) > 1:
            name = large_name(identity)
            present = self.objects.named(domain, name)
            if present is None or present.st_ino != found.st_ino:
                self.objects.link_to(self.objects, domain, identity.digest, f"{name}.tmp", name)
        return True

    def _place(self, domain: str, identity: FileIdentity, directory: int, name: str, status: os.stat_result) -> None:
        digest = identity.digest
        self._forget_unproven(domain, digest)
        present = self.objects.status(domain, digest)
        if present is not None:
            if present.st_size == identity.size and not is_derived(present):
                os.unlink(name, dir_fd=directory)
                if os.path.samestat(present, status):  # placed before, but the disk did not take its other name away
                    self._entered(domain, digest, status, linked=False)
                return
            self._unlink(self.objects, domain, digest, present)
        linked = None if identity.derived else self._link(domain, digest, identity.size)
        if linked is not None:
            os.unlink(name, dir_fd=directory)
        else:
            self.objects.place(directory, name, domain, digest)
        self._entered(domain, digest, linked or status, linked=linked is not None)

    def settle(self, domain: str, digest: bytes, *, good: bool, wait: bool = True) -> None:
        """The proof of an object was taken: it becomes one, or it goes. Without `wait` it stays if others are at work there.

        Raises:
            OSError: the disk refused.
        """
        lock = self.tally.lock_of(digest)
        if not lock.acquire(blocking=wait):
            return
        try:
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
        finally:
            lock.release()

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

    def unsynced(self) -> list[Key]:
        """Objects that came since the last sync."""
        with self._lock:
            return list(self._dirty)

    def forget_lost(self, domain: str, digest: bytes, *, covered: bool) -> bool:
        """Drop an object that ought to be here, but is not, from what is known; whether that was so.

        `covered`: a sync has put it on record. Without that it ought to be here if it came since the last sync. One
        that was removed in order is not lost.

        Raises:
            OSError: the disk refused to say.
        """
        key = (domain, digest)
        with self.tally.lock_of(digest):
            with self._lock:
                known = key in self._dirty or (covered and key not in self._removed)
            if not known or self._is_on_disk(domain, digest):
                return False
            self._forget(key)
            return True

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
        if status.st_nlink > 1:
            for name in tree.large_names(domain, digest.hex()[:2], digest):
                tree.unlink_named(domain, name)
        fd = _descriptor(tree, domain, digest)
        tree.unlink(domain, digest)
        freed = self.tally.removed(domain, digest, status)
        # A row that covered an older file of a name that went from `unproven` has to go as well.
        read_now = False
        if tree is self.objects or not self._is_on_disk(domain, digest):
            read_now = self._forget((domain, digest))
        if fd is not None:
            if freed and not read_now:
                self.held.deleted(fd, freed)
            else:  # it has other names, or its open handle is in the accounts
                os.close(fd)
        return freed

    def _is_on_disk(self, domain: str, digest: bytes) -> bool:
        return any(tree.status(domain, digest) is not None for tree in (self.objects, self.unproven))

    def _forget(self, key: Key) -> bool:
        """Forget an object that has lost its name; whether somebody reads it at this moment."""
        # After the unlink: a reader that opens the file later sees that it has no name, and does not keep it.
        read_now = self._handles.drop(key)
        with self._lock:
            self._dirty.pop(key, None)
            self._removed.add(key)
        return read_now

    def _forget_unproven(self, domain: str, digest: bytes) -> int | None:
        if not self.tally.unproven:
            return None
        status = self.unproven.status(domain, digest)
        if status is None:
            return None
        freed = self._unlink(self.unproven, domain, digest, status)
        self.tally.change_unproven(-1)
        return freed


def _descriptor(tree: ObjectTree, domain: str, digest: bytes) -> int | None:
    """An object open, so that it can be asked after when its name has gone; None if the disk refuses."""
    try:
        found = tree.open(domain, digest)
    except OSError:
        return None
    return None if found is None else found[0]


def is_derived(status: os.stat_result) -> bool:
    """Whether an object's name says nothing of its content."""
    return stat.S_IMODE(status.st_mode) == DERIVED_MODE
