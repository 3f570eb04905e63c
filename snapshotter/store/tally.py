"""How many bytes and files the cache holds, exact and cheap to ask."""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from snapshotter.store.disk import disk_bytes


@dataclass(frozen=True, slots=True)
class DomainUsage:
    """What one sharing domain holds; bytes on disk. An object that two domains share counts in both."""

    objects: int = 0
    object_bytes: int = 0
    partials: int = 0
    partial_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the whole cache holds, in bytes on disk without directories, as du counts them.

    `used` counts an object shared by several domains once and includes `deleted_open`: bytes of removed files that a
    reader still has open. `held` comes on top: bytes of removed files that the kernel keeps for containers, which no
    removal can free and no limit of the cache counts.
    """

    used: int
    deleted_open: int
    unproven: int
    domains: dict[str, DomainUsage]
    held: int = 0


@dataclass(slots=True)
class _Shard:
    """Objects whose digests begin with one byte; `lock` guards their names on disk and these numbers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    # domain → [objects, bytes]
    domains: dict[str, list[int]] = field(default_factory=dict)
    # inode → names in the tree, for those with more than one: one digest is one shard, so links never leave it.
    links: dict[int, int] = field(default_factory=dict)
    shared: int = 0  # bytes that `domains` counts more than once


class Tally:
    """Running totals. Every change of a name happens under `lock_of(digest)` together with its entry here."""

    def __init__(self, estimate: int) -> None:
        """`estimate` is what the total is taken for until `recount` was through."""
        self._shards = tuple(_Shard() for _ in range(256))
        self._lock = threading.Lock()  # guards every number; taken inside a shard's lock
        self._recount_lock = threading.Lock()  # one recount at a time
        self._counted = False
        self._objects = estimate
        self._partials: dict[str, list[int]] = {}
        self._partial_bytes = 0
        self._deleted_open = 0
        self.unproven = 0

    def lock_of(self, digest: bytes) -> threading.Lock:
        """The lock that guards the names of this digest in all domains."""
        return self._shards[digest[0]].lock

    def added(self, domain: str, digest: bytes, status: os.stat_result, *, linked: bool = False) -> None:
        """An object got a name; `linked`: its inode had one in another domain already."""
        shard = self._shards[digest[0]]
        size = disk_bytes(status)
        with self._lock:
            numbers = shard.domains.setdefault(domain, [0, 0])
            numbers[0] += 1
            numbers[1] += size
            if linked:
                shard.links[status.st_ino] = shard.links.get(status.st_ino, 1) + 1
                shard.shared += size
            else:
                self._objects += size

    def removed(self, domain: str, digest: bytes, status: os.stat_result) -> int:
        """An object lost a name; returns the bytes that it held alone."""
        shard = self._shards[digest[0]]
        size = disk_bytes(status)
        with self._lock:
            numbers = shard.domains.setdefault(domain, [0, 0])
            numbers[0] -= 1
            numbers[1] -= size
            names = shard.links.pop(status.st_ino, 1)
            if names == 1:
                self._objects -= size
                return size
            if names > 2:
                shard.links[status.st_ino] = names - 1
            shard.shared -= size
            return 0

    def partial(self, domain: str, files: int, size: int) -> None:
        """Partial files came or left, or grew by `size` bytes."""
        with self._lock:
            numbers = self._partials.setdefault(domain, [0, 0])
            numbers[0] += files
            numbers[1] += size
            self._partial_bytes += size

    def deleted_open(self, size: int) -> None:
        """A removed file stays open (positive), or was closed (negative)."""
        with self._lock:
            self._deleted_open += size

    def change_unproven(self, files: int) -> None:
        """Objects began or ceased to await proof."""
        with self._lock:
            self.unproven = max(0, self.unproven + files)

    def none_unproven(self) -> None:
        """No object awaits proof, as the disk shows."""
        with self._lock:
            self.unproven = 0

    def used(self) -> int:
        """Bytes on disk, at once; an estimate until `recount` was through."""
        with self._lock:
            return max(0, self._objects) + self._partial_bytes + self._deleted_open

    def recount(self, scan: Callable[[int], Iterable[tuple[str, os.stat_result]]], *, again: bool = False) -> None:
        """Count what is on disk unless that was done and not `again`; `scan` lists one shard over all domains."""
        with self._recount_lock:
            if self._counted and not again:
                return
            for number, shard in enumerate(self._shards):
                with shard.lock:
                    self._recount_shard(shard, scan(number))
            with self._lock:
                self._objects = sum(
                    sum(size for _, size in shard.domains.values()) - shard.shared for shard in self._shards
                )
                self._counted = True

    def _recount_shard(self, shard: _Shard, found: Iterable[tuple[str, os.stat_result]]) -> None:
        domains: dict[str, list[int]] = {}
        names: dict[int, int] = {}
        shared = 0
        for domain, status in found:
            numbers = domains.setdefault(domain, [0, 0])
            numbers[0] += 1
            numbers[1] += disk_bytes(status)
            if status.st_nlink > 1:  # in two domains, or in one and in `late`, which is no account
                names[status.st_ino] = names.get(status.st_ino, 0) + 1
                if names[status.st_ino] > 1:
                    shared += disk_bytes(status)
        with self._lock:
            shard.domains = domains
            shard.links = {inode: count for inode, count in names.items() if count > 1}
            shard.shared = shared

    def usage(self, held: int = 0) -> Usage:
        """Totals by domain; exact once `recount` was through. `held` is taken over as it is."""
        with self._lock:
            objects: dict[str, list[int]] = {}
            for shard in self._shards:
                for domain, (count, size) in shard.domains.items():
                    numbers = objects.setdefault(domain, [0, 0])
                    numbers[0] += count
                    numbers[1] += size
            domains = {
                domain: DomainUsage(*objects.get(domain, (0, 0)), *self._partials.get(domain, (0, 0)))
                for domain in sorted(objects.keys() | self._partials.keys())
                if objects.get(domain, (0, 0))[0] or self._partials.get(domain, (0, 0))[0]
            }
            used = max(0, self._objects) + self._partial_bytes + self._deleted_open
            return Usage(used, self._deleted_open, self.unproven, domains, held)
