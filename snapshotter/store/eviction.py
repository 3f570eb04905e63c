"""How much must leave the cache, and what has left. Pure."""

from dataclasses import dataclass

from snapshotter.config import CacheConfig


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction round removed; bytes on disk. `held` are those of them that the disk did not get back yet."""

    bytes: int = 0
    objects: int = 0
    partials: int = 0
    held: int = 0


def bytes_to_free(used: int, free: int, limits: CacheConfig) -> int:
    """Bytes that must leave so that the cache is at its low-water mark again; 0 while no limit is passed.

    `used` is what the cache holds, `free` what its file system has left. The free-space floor gets the same distance between
    the mark that starts a round and the one that ends it as the quota, so that rounds are rare there too.
    """
    surplus = 0
    if limits.quota and used > limits.quota * limits.high_water:
        surplus = used - int(limits.quota * limits.low_water)
    if free < limits.min_free:
        target = int(limits.min_free * (1 + limits.high_water - limits.low_water))
        surplus = max(surplus, target - free)
    return min(surplus, used)


def room_for(size: int, used: int, free: int, limits: CacheConfig) -> str | None:
    """None if `size` bytes more break no limit, else which limit they break, as a sentence for the admin."""
    if limits.quota and used + size > limits.quota:
        return f"cache.quota of {limits.quota} bytes is used up"
    if limits.min_free and free - size < limits.min_free:
        return f"only {free} bytes are free on its file system, cache.min_free keeps {limits.min_free}"
    return None


def has_room(size: int, used: int, free: int, limits: CacheConfig) -> bool:
    """Whether `size` bytes more leave the cache at or below the mark to which an eviction would bring it."""
    target = int(limits.min_free * (1 + limits.high_water - limits.low_water))
    return (not limits.quota or used + size <= limits.quota * limits.low_water) and free - size >= target
