"""What the layer room counts; the daemon shows it."""

from bisect import bisect_left
from dataclasses import dataclass, field

from snapshotter.layer.priority import Priority

WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""From a registry in the same rack to one that a read waits out (`fetch.on_outage`)."""

FETCH_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
"""The longest are those of bulk streams of whole layers."""

HOSTS_MAX = 50
"""Registry hosts that are counted one by one. Their names come from images, so that anybody could invent more."""

OTHER_HOSTS = "other"
"""What further hosts are counted under; no host has this name, since a name without a dot or a port is none."""


@dataclass(slots=True)
class Histogram:
    """How many values fell between bounds: `counts[i]` are those above `bounds[i - 1]` and up to `bounds[i]`.

    Without a lock: one thread writes (those of the layer room the trio thread), or the owner has a lock for it. Others
    may read at any time, and find a value in `counts` a moment before it is in `sum`.
    """

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> "Histogram":
        """An empty one; `bounds` ascend, and what is above the last is counted too."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class HostCounters:
    """What one host was asked for blobs and sent, in bytes; TOCs count as demand. A mirror sends what its registry was asked for."""

    fetched: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    requests: int = 0
    failures: int = 0


@dataclass(slots=True)
class Counters:
    """Totals since the daemon's start, written on the trio thread. Sizes are bytes, times seconds."""

    fetched: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    requests: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    first_byte: dict[Priority, Histogram] = field(
        default_factory=lambda: {priority: Histogram.over(FETCH_BOUNDS_S) for priority in Priority}
    )
    """From the request for a range to the first bytes of its answer, with all retries before them."""
    whole_range: dict[Priority, Histogram] = field(
        default_factory=lambda: {priority: Histogram.over(FETCH_BOUNDS_S) for priority in Priority}
    )
    """From the request for a range until all of it is stored, with the pauses of bulk streams."""
    reads: int = 0
    read_from_cache: int = 0
    """Bytes of reads that were on the node when they were asked for; those that the kernel reads by itself are not known."""
    read_after_wait: int = 0
    """Bytes of reads that had to be fetched first."""
    read_errors: int = 0
    last_demand: float = float("-inf")
    """trio's time of the last read that had to wait."""
    verification_failures: int = 0
    served_from_memory: int = 0
    evicted_bytes: int = 0
    evicted_objects: int = 0
    evicted_partials: int = 0
    hosts: dict[str, str] = field(default_factory=dict)
    """Registry hosts that were asked; the text is the last failure, empty when the last request worked."""
    by_host: dict[str, HostCounters] = field(default_factory=dict)

    def host_name(self, host: str) -> str:
        """The name under which a host is counted."""
        if host in self.by_host or len(self.by_host) < HOSTS_MAX:
            return host
        return OTHER_HOSTS

    def of_host(self, host: str) -> HostCounters:
        """The counters of a host."""
        found = self.by_host.get(host)
        if found is None:
            found = self.by_host.setdefault(self.host_name(host), HostCounters())
        return found
