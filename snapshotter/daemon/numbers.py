"""The daemon as the metrics see it: fulfils `metrics.figures.NodeNumbers`. Called from the threads that answer scrapes.

What is counted on the loop is read here without waiting for the loop: one that hangs is what the metrics are wanted for.
Dictionaries are copied before they are looked at, each in one step of the interpreter.
"""

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from snapshotter import __version__
from snapshotter.config import CacheConfig, Config
from snapshotter.daemon.calls import CallTimes
from snapshotter.daemon.node import Identity
from snapshotter.daemon.sampling import LoopSample
from snapshotter.errors import Reason, StoreError
from snapshotter.layer.counters import Counters, Histogram
from snapshotter.layer.priority import Priority
from snapshotter.layer.shelf import Shelf
from snapshotter.layer.waits import Waits
from snapshotter.metrics.figures import CacheFigures, Distribution, Figures, Labels
from snapshotter.registry.retry import RetryCounts
from snapshotter.service.pulls import Outcome, PullLog
from snapshotter.store import state_snapshots
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State
from snapshotter.store.state_snapshots import Kind


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts that count. `problems` and `plane_failures` are those of the daemon's status, `sick` is `Registry.sick`."""

    state: State
    store: ObjectStore
    shelf: Shelf
    counters: Counters
    waits: Waits
    fuse_requests: Mapping[str, int]
    fuse_failures: Mapping[str, int]
    retries: RetryCounts
    sick: LoopSample[Mapping[str, bool]]
    pulls: PullLog
    calls: CallTimes
    problems: Callable[[], int]
    plane_failures: Callable[[], Mapping[int, str]]


class Numbers:
    """Reads the parts."""

    def __init__(self, config: Config, identity: Identity, sources: Sources) -> None:
        self._config = config
        self._identity = identity
        self._sources = sources

    def read(self) -> Figures:
        """The figures of this moment.

        Raises:
            StoreError: the state cannot be read.
        """
        of, counters = self._sources, self._sources.counters
        with of.state.read() as db:
            census = state_snapshots.census(db)
        by_host = dict(counters.by_host)
        sick, delay_s = of.sick.read()
        return Figures(
            version=__version__,
            python=platform.python_version(),
            plane=self._identity.plane,
            session=self._identity.session,
            problems=of.problems(),
            loop_delay=delay_s,
            pulled=pulled(of.pulls),
            layers=self._layers(census),
            layers_through_fuse=len(of.plane_failures()),
            snapshots={
                kind.name.lower(): sum(number for (one, _), number in census.items() if one is kind) for kind in Kind
            },
            fetched={
                (_word(priority), host): size for host, one in by_host.items() for priority, size in one.fetched.items()
            },
            fetches={host: one.requests for host, one in by_host.items()},
            fetch_failures={host: one.failures for host, one in by_host.items()},
            host_failing=self._by_host((host, bool(failure)) for host, failure in dict(counters.hosts).items()),
            host_passed_over=self._by_host(sick.items()),
            breaker_open=self._by_host(
                (host, breaker.open) for layer in of.shelf.all() for host, breaker in layer.origin.breakers().items()
            ),
            first_byte={_word(priority): _distribution(one) for priority, one in counters.first_byte.items()},
            whole_fetch={_word(priority): _distribution(one) for priority, one in counters.whole_range.items()},
            retries=of.retries.repeated,
            retries_given_up=of.retries.given_up,
            reads=counters.reads,
            read_bytes={"cache": counters.read_from_cache, "registry": counters.read_after_wait},
            waits={"read": _distribution(of.waits.read_times), "lookup": _distribution(of.waits.lookup_times)},
            waiting={"read": of.waits.reads, "lookup": of.waits.lookups},
            verification_failures=counters.verification_failures,
            served_from_memory=counters.served_from_memory,
            fuse_operations=dict(of.fuse_requests),
            fuse_errors={"lookup": 0, "read": 0} | dict(of.fuse_failures),
            cache=cache_figures(of.store, self._config.cache, self._config.root),
            evicted_bytes=counters.evicted_bytes,
            evicted_files={"object": counters.evicted_objects, "partial": counters.evicted_partials},
            cache_faults={
                "unreadable": of.store.counters.unreadable,
                "torn": of.store.counters.disproved,
                "mismatch": of.store.counters.mismatches,
            },
            calls={key: _distribution(one) for key, one in of.calls.histograms().items()},
        )

    def _layers(self, census: Mapping[tuple[Kind, bool], int]) -> dict[str, int]:
        layers = self._sources.shelf.all()
        complete = sum(layer.record.complete for layer in layers)
        return {
            "lazy": len(layers) - complete,
            "complete": complete,
            "failed": len(self._sources.shelf.broken()),
            "ordinary": census.get((Kind.COMMITTED, True), 0),
        }

    def _by_host(self, states: Iterable[tuple[str, bool]]) -> dict[str, int]:
        """1 for each host that has a state anywhere, else 0."""
        found: dict[str, int] = {}
        for host, state in states:
            name = self._sources.counters.host_name(host)
            found[name] = max(found.get(name, 0), int(state))
        return found


def pulled(pulls: PullLog) -> dict[Labels, int]:
    """Return layers by result and reason, those with none so far too: a rate needs the zero before the first."""
    results: dict[Labels, int] = {(Outcome.LAZY, ""): 0, (Outcome.PRESENT, ""): 0}
    results |= {(Outcome.ORDINARY, reason): 0 for reason in Reason}
    return results | {(outcome, reason or ""): number for (outcome, reason), number in pulls.results().items()}


def cache_figures(store: ObjectStore, limits: CacheConfig, root: "os.PathLike[str]") -> CacheFigures | None:
    """Return what the cache holds by its running totals, None if the disk does not say."""
    try:
        usage, disk = store.usage(), os.statvfs(root)
    except (StoreError, OSError):
        return None
    domains = usage.domains.values()
    return CacheFigures(
        bytes_by_kind={
            "object": sum(one.object_bytes for one in domains),
            "partial": sum(one.partial_bytes for one in domains),
            "deleted-open": usage.deleted_open + usage.held,
        },
        files_by_kind={
            "object": sum(one.objects for one in domains),
            "partial": sum(one.partials for one in domains),
        },
        used=usage.used,
        quota=limits.quota,
        high_water=int(limits.quota * limits.high_water),
        unproven=usage.unproven,
        disk_free=disk.f_bavail * disk.f_frsize,
        disk_min_free=limits.min_free,
        disk_capacity=disk.f_blocks * disk.f_frsize,
    )


def _word(priority: Priority) -> str:
    return priority.name.lower()


def _distribution(one: Histogram) -> Distribution:
    return Distribution(one.bounds, tuple(one.counts), one.sum)
