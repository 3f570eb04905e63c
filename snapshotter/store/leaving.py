"""What leaves the cache to make room, and how much of its room the disk gets back at once."""

from collections.abc import Iterable

from snapshotter.store.eviction import Evicted
from snapshotter.store.partials import PartialSet
from snapshotter.store.placement import Placement


def evict(
    placement: Placement, partials: PartialSet, candidates: Iterable[tuple[str, bytes, int]], bytes_to_free: int
) -> Evicted:
    """Remove one (domain, digest, size) after the other; see `ObjectStore.evict`.

    Raises:
        OSError: the disk refused.
    """
    freed = objects = files = 0
    held = placement.held.bytes
    for domain, digest, _ in candidates:
        if freed >= bytes_to_free:
            break
        removed = placement.remove(domain, digest)
        if removed is not None:
            objects += 1
            freed += removed
        for entry in partials.of_digest(domain, digest):
            size = partials.remove(entry, unless_busy=True)
            files += size > 0
            freed += size
    return Evicted(freed, objects, files, max(0, placement.held.bytes - held))
