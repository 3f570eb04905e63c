"""What the metrics are made of: plain values at one moment, and the protocol of whoever knows them.

Keys of mappings are label values, in the order in which `catalogue` names the labels. None of them may be the name of a
layer, an image, a digest or a path: the number of series must not grow with what is on the node.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

Labels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values fell between bounds: `counts[i]` up to `bounds[i]`, and one count more for what is above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """What the cache holds and may hold, in bytes on disk; 0 for a quota that is not set."""

    bytes_by_kind: Mapping[str, int]
    files_by_kind: Mapping[str, int]
    used: int
    quota: int
    high_water: int
    unproven: int
    disk_free: int
    disk_min_free: int
    disk_capacity: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Totals count from the daemon's start. Sizes are bytes, times seconds."""

    version: str
    python: str
    plane: str
    session: int
    problems: int = 0
    loop_delay: float = 0.0
    pulled: Mapping[Labels, int] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    layers_through_fuse: int = 0
    snapshots: Mapping[str, int] = field(default_factory=dict)
    fetched: Mapping[Labels, int] = field(default_factory=dict)
    fetches: Mapping[str, int] = field(default_factory=dict)
    fetch_failures: Mapping[str, int] = field(default_factory=dict)
    host_failing: Mapping[str, int] = field(default_factory=dict)
    host_passed_over: Mapping[str, int] = field(default_factory=dict)
    breaker_open: Mapping[str, int] = field(default_factory=dict)
    first_byte: Mapping[str, Distribution] = field(default_factory=dict)
    whole_fetch: Mapping[str, Distribution] = field(default_factory=dict)
    retries: int = 0
    retries_given_up: int = 0
    reads: int = 0
    read_bytes: Mapping[str, int] = field(default_factory=dict)
    waits: Mapping[str, Distribution] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)
    verification_failures: int = 0
    served_from_memory: int = 0
    fuse_operations: Mapping[str, int] = field(default_factory=dict)
    fuse_errors: Mapping[str, int] = field(default_factory=dict)
    cache: CacheFigures | None = None
    """None while the disk does not say."""
    evicted_bytes: int = 0
    evicted_files: Mapping[str, int] = field(default_factory=dict)
    cache_faults: Mapping[str, int] = field(default_factory=dict)
    calls: Mapping[Labels, Distribution] = field(default_factory=dict)


class NodeNumbers(Protocol):
    """The node as the metrics see it; asked by the threads that answer scrapes."""

    def read(self) -> Figures:
        """The figures of this moment. Cheap: no pass over files or layers' contents; and it comes also while the loop hangs."""
