"""`cache verify`: read everything again and compare, and look for what ought to be there."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from snapshotter.store.cache_db import CacheDB
from snapshotter.store.disk import disk_errors, hash_range
from snapshotter.store.partials import PartialEntry, PartialSet
from snapshotter.store.placement import ObjectInfo, Placement, is_derived
from snapshotter.store.recovery import count_unproven
from snapshotter.store.tree import SHARDS

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Verified:
    """What a verification found; bad content is removed already, and missing content forgotten."""

    objects: int = 0
    chunks: int = 0
    bytes: int = 0
    unverifiable: int = 0  # objects with a derived name: no digest to compare with
    bad_objects: list[ObjectInfo] = field(default_factory=list)
    bad_chunks: int = 0
    missing: list[ObjectInfo] = field(default_factory=list)  # deleted by somebody else; of unknown size, so 0


def verify(
    placement: Placement, partials: PartialSet, db: CacheDB, sync_lock: threading.Lock, progress: Progress
) -> Verified:
    """Hash all objects and all chunks of partial files; what does not match is removed and will be fetched again.

    Afterwards the accounts agree with the disk, whatever others did there.

    `progress` hears (bytes done, bytes in all) after each file; an exception out of it ends the work. Readers and
    writers go on meanwhile.

    Raises:
        StoreError: the disk refused a listing or a removal, or cache.db cannot be read.
    """
    result = Verified()
    with disk_errors("verify the cache"):
        domains = sorted(placement.domains())
        total = sum(info.disk_bytes for domain in domains for info in placement.iterate(domain))
        total += sum(entry.disk_bytes for domain in partials.domains() for entry in partials.entries(domain))
        done = 0
        for domain in domains:
            for info in placement.iterate(domain):
                _verify_object(placement, info, result)
                done += info.disk_bytes
                progress(min(done, total), total)
        for domain in partials.domains():
            for entry in partials.entries(domain):
                _verify_partial(partials, entry, result)
                done += entry.disk_bytes
                progress(min(done, total), total)
        result.missing = forget_lost(placement, db, sync_lock)
        for domain in domains:
            placement.tidy_large(domain)
        if not count_unproven(placement.unproven):
            placement.tally.none_unproven()
        # How large a file was that somebody deleted or cut short is not known; what is left is.
        placement.tally.recount(placement.scan, again=True)
    return result


def forget_lost(placement: Placement, db: CacheDB, sync_lock: threading.Lock) -> list[ObjectInfo]:
    """Find and forget objects that are known, were not removed in order, and are not on disk.

    `sync_lock` is held over each reading of rows and its judgement: a sync in between would take the removals of its
    time off the list that tells them from losses.

    Raises:
        OSError: the disk refused a listing.
        StoreError: cache.db did.
    """
    # First what no sync has covered: a sync after this moves it to where the second look finds it.
    lost = [key for key in placement.unsynced() if placement.forget_lost(*key, covered=False)]
    with sync_lock:
        domains = db.domains()
    for domain in domains:
        for shard in SHARDS:
            with sync_lock:
                covered = db.covered(domain, shard).keys()
                here = {digest for digest, _ in placement.objects.shard(domain, shard)} if covered else set()
                lost += [
                    (domain, digest)
                    for digest in sorted(covered - here)
                    if placement.forget_lost(domain, digest, covered=True)
                ]
    return [ObjectInfo(domain, digest, 0, 0) for domain, digest in lost]


def _verify_object(placement: Placement, info: ObjectInfo, result: Verified) -> None:
    for tree in (placement.objects, placement.unproven):
        found = tree.open(info.domain, info.digest)
        if found is None:
            continue
        fd, status = found
        try:
            digest = hash_range(fd, 0, status.st_size)
        except OSError:
            digest = None
        finally:
            os.close(fd)
        result.objects += 1
        result.bytes += status.st_size
        if is_derived(status):
            # A derived name proves nothing, so one that a power loss may have torn cannot stay.
            result.unverifiable += 1
            good = tree is placement.objects and digest is not None
        else:
            good = digest == info.digest
        if tree is placement.unproven:
            placement.settle(info.domain, info.digest, good=good)
        elif not good:
            placement.remove(info.domain, info.digest)
        if not good:
            result.bad_objects.append(info)
        return


def _verify_partial(partials: PartialSet, entry: PartialEntry, result: Verified) -> None:
    partial = partials.open(entry)
    if partial is None:
        return
    present = [number for number in range(len(partial.identity.chunks)) if partial.present(number)]
    bad = partial.check(present)
    if bad:
        partial.forget(bad)
        partials.changed(entry.domain, partial)
    result.chunks += len(present)
    result.bad_chunks += len(bad)
    result.bytes += sum(partial.identity.chunks[number][1] for number in present)
