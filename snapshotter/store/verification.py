"""`cache verify`: read everything again and compare."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from snapshotter.store.disk import disk_errors, hash_range
from snapshotter.store.partials import PartialSet
from snapshotter.store.placement import ObjectInfo, Placement, is_derived

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Verified:
    """What a verification found; bad content is removed already."""

    objects: int = 0
    chunks: int = 0
    bytes: int = 0
    unverifiable: int = 0  # objects with a derived name: no digest to compare with
    bad_objects: list[ObjectInfo] = field(default_factory=list)
    bad_chunks: int = 0


def verify(placement: Placement, partials: PartialSet, progress: Progress) -> Verified:
    """Hash all objects and all chunks of partial files; what does not match is removed and will be fetched again.

    `progress` hears (bytes done, bytes in all) after each file; an exception out of it ends the work. Readers and
    writers go on meanwhile.

    Raises:
        StoreError: the disk refused a listing or a removal.
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
                partial = partials.open(entry)
                if partial is not None:
                    present = [number for number in range(len(partial.identity.chunks)) if partial.present(number)]
                    bad = partial.check(present)
                    if bad:
                        partial.forget(bad)
                        partials.changed(domain, partial)
                    result.chunks += len(present)
                    result.bad_chunks += len(bad)
                    result.bytes += sum(partial.identity.chunks[number][1] for number in present)
                done += entry.disk_bytes
                progress(min(done, total), total)
    return result


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
