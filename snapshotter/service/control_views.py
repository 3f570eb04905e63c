"""What the daemon tells the commands, as plain values; `control.py` puts them into protobuf.

The dataclasses carry the names of the messages' fields (proto/control.proto explains them).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class VersionView:
    """Which program answers."""

    version: str
    python: str
    kernel: str


@dataclass(frozen=True, slots=True)
class StatusView:
    """How the daemon is. Counters are totals since its start, sizes bytes."""

    version: str
    pid: int
    started_at_ns: int
    plane: str
    plane_reason: str
    root: str
    run_dir: str
    address: str
    mountpoint: str
    session: int
    snapshots: int
    layers_lazy: int
    layers_failed: int
    fetched_demand: int
    fetched_prefetch: int
    fetched_background: int
    integrity_failures: int
    read_errors: int
    cache_used: int
    cache_quota: int
    cache_free: int
    fuse_requests: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    take_overs: int = 0
    keeper_pid: int = 0
    containers_to_restart: tuple[str, ...] = ()


class LayerState(IntEnum):
    """What became of a layer; the numbers are those of the wire."""

    LAZY = 1
    COMPLETE = 2
    FAILED = 3
    ORDINARY = 4


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of one image: mounted lazily, or ordinary with the reason. Sizes are bytes, 0 where not known."""

    image: str
    digest: str
    state: LayerState
    toc_digest: str = ""
    reason: str = ""
    detail: str = ""
    size: int = 0
    present: int = 0
    blob_size: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class DomainView:
    """What one sharing domain holds."""

    domain: str
    objects: int
    object_bytes: int
    partials: int
    partial_bytes: int


@dataclass(frozen=True, slots=True)
class CacheUsageView:
    """What the cache holds and may hold, in bytes."""

    domains: tuple[DomainView, ...]
    deleted_open: int
    unreferenced: int
    used: int
    quota: int
    high_water: int
    low_water: int
    free: int
    min_free: int
    capacity: int


@dataclass(frozen=True, slots=True)
class CachedFileView:
    """One file of the cache: an object named by its digest, or a partial file."""

    domain: str
    name: str
    size: int
    present: int
    complete: bool
    referenced: bool
    last_use_ns: int


@dataclass(frozen=True, slots=True)
class PruneStep:
    """How far a prune is."""

    files_removed: int
    bytes_removed: int
    bytes_total: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class BadFileView:
    """A cached file that is not what its name says."""

    domain: str
    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class MissingFileView:
    """A file that ought to be in the cache, and that the daemon did not delete."""

    domain: str
    name: str


@dataclass(frozen=True, slots=True)
class VerifyStep:
    """How far a verification is, and what it found bad or missing since the last step."""

    files_checked: int
    bytes_checked: int
    bytes_total: int
    bad: tuple[BadFileView, ...] = ()
    missing: tuple[MissingFileView, ...] = ()
    done: bool = False


@dataclass(frozen=True, slots=True)
class UserView:
    """A container, or a mount of somebody else, that stands on our layers."""

    name: str
    namespace: str
    mountpoint: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TeardownView:
    """What a teardown did; with users and not `done` it did nothing."""

    users: tuple[UserView, ...]
    unmounted: tuple[str, ...]
    done: bool


class WaitKind(IntEnum):
    """What a process does while it waits; the numbers are those of the wire."""

    READ = 1
    LOOKUP = 2


@dataclass(frozen=True, slots=True)
class WaitView:
    """One process that waits for one file, or a file that somebody reads and nobody was seen to wait for (`pid` 0)."""

    kind: WaitKind
    waited_ns: int
    path: str
    path_seen: bool
    digest: str
    size: int
    layer: str
    image: str
    reads: int
    pid: int = 0
    process: str = ""
    container: str = ""
    namespace: str = ""
    container_name: str = ""


@dataclass(frozen=True, slots=True)
class HostAwayView:
    """A registry host whose last request failed, and how."""

    host: str
    failure: str


@dataclass(frozen=True, slots=True)
class ActivityView:
    """What goes on at this moment. Counters are totals since the daemon's start; two answers make a rate."""

    clock_ns: int
    plane: str
    started_at_ns: int
    layers_lazy: int
    fetched_demand: int
    fetched_prefetch: int
    fetched_background: int
    fetching_demand: int
    fetching_prefetch: int
    fetching_background: int
    cache_used: int
    cache_quota: int
    reads_waiting: int
    lookups_waiting: int
    longest_wait_ns: int
    processes_seen: bool
    fuse_requests: Mapping[str, int] = field(default_factory=dict)
    away: tuple[HostAwayView, ...] = ()
    waits: tuple[WaitView, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedImageView:
    """What one image has on this node. Equal files of its layers count once; sizes are bytes.

    `size` is that of its lazy layers; those of ordinary and failed ones are not known.
    """

    image: str
    lazy: int
    ordinary: int
    failed: int
    size: int
    present: int
    last_use_ns: int
