"""Every metric: its name, kind, labels, the sentence that explains it, and where its values come from.

Names follow Prometheus' conventions: base units, `_total` for counters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from snapshotter.metrics.figures import CacheFigures, Distribution, Figures, Labels

T = TypeVar("T")


class Kind(Enum):
    """Of a metric, in Prometheus' sense."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `values` gives the series of figures by the values of its labels."""

    name: str
    kind: Kind
    labels: Labels
    doc: str
    values: Callable[[Figures], Mapping[Labels, float | Distribution]]


def _keyed(values: Mapping[str, T]) -> dict[Labels, T]:
    """Return series with one label."""
    return {(key,): value for key, value in values.items()}


def _of_cache(read: Callable[[CacheFigures], float]) -> Callable[[Figures], dict[Labels, float]]:
    """Return what gives one figure of the cache, and no series while the disk does not say."""
    return lambda figures: {} if figures.cache is None else {(): read(figures.cache)}


def _by_kind(read: Callable[[CacheFigures], Mapping[str, int]]) -> Callable[[Figures], dict[Labels, int]]:
    return lambda figures: {} if figures.cache is None else _keyed(read(figures.cache))


_NODE = (
    Family(
        "estargz_build_info",
        Kind.GAUGE,
        ("version", "python"),
        "Always 1; the labels say which version runs, and on which Python.",
        lambda f: {(f.version, f.python): 1},
    ),
    Family(
        "estargz_plane_info",
        Kind.GAUGE,
        ("plane",),
        "Always 1; the label says how layers become directories: erofs or fuse.",
        lambda f: {(f.plane,): 1},
    ),
    Family(
        "estargz_session",
        Kind.GAUGE,
        (),
        "Number of the FUSE session; each start of the daemon begins a new one.",
        lambda f: {(): f.session},
    ),
    Family(
        "estargz_problems",
        Kind.GAUGE,
        (),
        "Things that an admin should look at; `snapshotter status` says each in a sentence.",
        lambda f: {(): f.problems},
    ),
    Family(
        "estargz_loop_delay_seconds",
        Kind.GAUGE,
        (),
        "How long the daemon's loop, which every read of a program goes through, took to answer this scrape; 1 if it did not.",
        lambda f: {(): f.loop_delay},
    ),
    Family(
        "estargz_rpc_duration_seconds",
        Kind.HISTOGRAM,
        ("method", "code"),
        "How long calls of containerd and of the commands took, by gRPC status; of a lazy Prepare ALREADY_EXISTS is success.",
        lambda f: f.calls,
    ),
)

_PULLS = (
    Family(
        "estargz_pulled_layers_total",
        Kind.COUNTER,
        ("result", "reason"),
        "Layers that a pull asked for: lazy, present (there already), or ordinary (unpacked whole) with the reason.",
        lambda f: f.pulled,
    ),
    Family(
        "estargz_layers",
        Kind.GAUGE,
        ("state",),
        "Layers on the node: lazy, complete (lazy, and fetched whole once), failed (cannot be mounted), "
        "ordinary (snapshots that were unpacked although lazy was asked for).",
        lambda f: _keyed(f.layers),
    ),
    Family(
        "estargz_layers_through_fuse",
        Kind.GAUGE,
        (),
        "Layers that the erofs plane serves through FUSE, slower than it could be, since they have no EROFS image.",
        lambda f: {(): f.layers_through_fuse},
    ),
    Family(
        "estargz_snapshots",
        Kind.GAUGE,
        ("kind",),
        "Snapshots that containerd has here, by kind: active, view or committed.",
        lambda f: _keyed(f.snapshots),
    ),
)

_READS = (
    Family(
        "estargz_reads_total",
        Kind.COUNTER,
        (),
        "Reads of files that reached the daemon; those that the kernel answers by itself do not.",
        lambda f: {(): f.reads},
    ),
    Family(
        "estargz_read_bytes_total",
        Kind.COUNTER,
        ("source",),
        "Bytes of reads that reached the daemon, by where they were when they were asked for: cache or registry.",
        lambda f: _keyed(f.read_bytes),
    ),
    Family(
        "estargz_wait_duration_seconds",
        Kind.HISTOGRAM,
        ("kind",),
        "How long programs waited for content that was not on the node: in a read, or in a lookup, the first open of a file "
        "on the erofs plane.",
        lambda f: _keyed(f.waits),
    ),
    Family(
        "estargz_waiting",
        Kind.GAUGE,
        ("kind",),
        "Requests of programs that wait for content at this moment, by kind: read or lookup.",
        lambda f: _keyed(f.waiting),
    ),
    Family(
        "estargz_fuse_operations_total",
        Kind.COUNTER,
        ("operation",),
        "What the kernel asked through FUSE, by kind of request.",
        lambda f: _keyed(f.fuse_operations),
    ),
    Family(
        "estargz_fuse_errors_total",
        Kind.COUNTER,
        ("operation",),
        "Requests of the kernel that ended in an error, by kind of request: a program got an I/O error for each.",
        lambda f: _keyed(f.fuse_errors),
    ),
)

_WIRE = (
    Family(
        "estargz_fetched_bytes_total",
        Kind.COUNTER,
        ("kind", "host"),
        "Bytes of layers by what asked for them and the host that sent them, a registry or its mirror; "
        "tables of contents count as demand.",
        lambda f: f.fetched,
    ),
    Family(
        "estargz_fetches_total",
        Kind.COUNTER,
        ("host",),
        "Ranges of layers that were asked of a registry, its mirrors included; retries and resumptions of one range do not count.",
        lambda f: _keyed(f.fetches),
    ),
    Family(
        "estargz_fetch_failures_total",
        Kind.COUNTER,
        ("host",),
        "Of those, how many ended in an error after all retries.",
        lambda f: _keyed(f.fetch_failures),
    ),
    Family(
        "estargz_fetch_first_byte_duration_seconds",
        Kind.HISTOGRAM,
        ("kind",),
        "From the request for a range of a layer to its first bytes.",
        lambda f: _keyed(f.first_byte),
    ),
    Family(
        "estargz_fetch_duration_seconds",
        Kind.HISTOGRAM,
        ("kind",),
        "From the request for a range of a layer until all of it was stored; prefetch and background pause for demand.",
        lambda f: _keyed(f.whole_fetch),
    ),
    Family(
        "estargz_retries_total",
        Kind.COUNTER,
        (),
        "Requests to registries that were repeated after a fault.",
        lambda f: {(): f.retries},
    ),
    Family(
        "estargz_retries_exhausted_total",
        Kind.COUNTER,
        (),
        "Requests to registries that were given up after the last retry.",
        lambda f: {(): f.retries_given_up},
    ),
    Family(
        "estargz_host_failing",
        Kind.GAUGE,
        ("host",),
        "1 if the last request for layers to a registry host failed, else 0.",
        lambda f: _keyed(f.host_failing),
    ),
    Family(
        "estargz_host_passed_over",
        Kind.GAUGE,
        ("host",),
        "1 while a registry or mirror is asked after the others since it did not answer, else 0.",
        lambda f: _keyed(f.host_passed_over),
    ),
    Family(
        "estargz_breaker_open",
        Kind.GAUGE,
        ("host",),
        "1 if the circuit breaker of any layer is open for a registry host, so that fetches wait or fail at once, else 0.",
        lambda f: _keyed(f.breaker_open),
    ),
    Family(
        "estargz_verification_failures_total",
        Kind.COUNTER,
        (),
        "Downloads that did not have the digest they must have; they were not used.",
        lambda f: {(): f.verification_failures},
    ),
)

_CACHE = (
    Family(
        "estargz_cache_bytes",
        Kind.GAUGE,
        ("kind",),
        "Bytes on disk: object (whole files), partial (parts of large files), deleted-open (removed, and held by a reader). "
        "Objects that several sharing domains hold count in each.",
        _by_kind(lambda cache: cache.bytes_by_kind),
    ),
    Family(
        "estargz_cache_files",
        Kind.GAUGE,
        ("kind",),
        "Files of the cache by kind: object or partial.",
        _by_kind(lambda cache: cache.files_by_kind),
    ),
    Family(
        "estargz_cache_used_bytes",
        Kind.GAUGE,
        (),
        "Bytes on disk that count against the quota.",
        _of_cache(lambda cache: cache.used),
    ),
    Family(
        "estargz_cache_quota_bytes",
        Kind.GAUGE,
        (),
        "The most that the cache may hold (cache.quota); 0 if that is left to the free space alone.",
        _of_cache(lambda cache: cache.quota),
    ),
    Family(
        "estargz_cache_high_water_bytes",
        Kind.GAUGE,
        (),
        "What the cache holds when files begin to leave; 0 without a quota.",
        _of_cache(lambda cache: cache.high_water),
    ),
    Family(
        "estargz_cache_unproven_files",
        Kind.GAUGE,
        (),
        "Files that a power loss may have torn, and that nobody has asked for since.",
        _of_cache(lambda cache: cache.unproven),
    ),
    Family(
        "estargz_disk_free_bytes",
        Kind.GAUGE,
        (),
        "Bytes free on the file system of the root directory.",
        _of_cache(lambda cache: cache.disk_free),
    ),
    Family(
        "estargz_disk_min_free_bytes",
        Kind.GAUGE,
        (),
        "Bytes that the cache leaves free there (cache.min_free).",
        _of_cache(lambda cache: cache.disk_min_free),
    ),
    Family(
        "estargz_disk_capacity_bytes",
        Kind.GAUGE,
        (),
        "Bytes of the whole file system of the root directory.",
        _of_cache(lambda cache: cache.disk_capacity),
    ),
    Family(
        "estargz_evicted_bytes_total",
        Kind.COUNTER,
        (),
        "Bytes on disk that left the cache since it was over its bounds.",
        lambda f: {(): f.evicted_bytes},
    ),
    Family(
        "estargz_evicted_files_total",
        Kind.COUNTER,
        ("kind",),
        "Files that left the cache since it was over its bounds, by kind: object or partial.",
        lambda f: _keyed(f.evicted_files),
    ),
    Family(
        "estargz_cache_faults_total",
        Kind.COUNTER,
        ("kind",),
        "Cached files that were thrown away: unreadable (by the disk), torn (by a power loss), "
        "mismatch (a large file whose whole is not what its image promises; its verified parts stay).",
        lambda f: _keyed(f.cache_faults),
    ),
    Family(
        "estargz_memory_members_total",
        Kind.COUNTER,
        (),
        "Pieces of layers that were served from memory since the disk did not take them.",
        lambda f: {(): f.served_from_memory},
    ),
)

FAMILIES = (*_NODE, *_PULLS, *_READS, *_WIRE, *_CACHE)
