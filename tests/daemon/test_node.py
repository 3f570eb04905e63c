"""What the daemon answers to the commands, over doubles of its parts."""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from snapshotter.config import CacheConfig, Config
from snapshotter.daemon import node as node_module
from snapshotter.daemon.ending import TORN_DOWN
from snapshotter.daemon.inventory import layer_rows
from snapshotter.daemon.node import Identity, Node
from snapshotter.daemon.stranded import StrandedContainers
from snapshotter.errors import PlaneError, Reason, StoreError
from snapshotter.format.digest import Digest
from snapshotter.layer.counters import Counters
from snapshotter.service.control_views import LayerState, PruneStep, TeardownView, UserView
from snapshotter.store import state_snapshots
from snapshotter.store.eviction import Evicted
from snapshotter.store.placement import ObjectInfo
from snapshotter.store.state import LayerSource, State
from snapshotter.store.state_snapshots import Kind, NewSnapshot
from snapshotter.store.tally import DomainUsage, Usage
from snapshotter.store.verification import Verified

A, B, C, D = (bytes([number]) * 32 for number in range(1, 5))
IMAGE = "registry.example.org/a/b:1"


@dataclass
class FakeIndex:
    table: dict[bytes, int]

    def digests(self) -> Iterator[tuple[bytes, int, int]]:
        for digest in sorted(self.table):
            yield digest, self.table[digest], 1

    def find(self, digest: bytes) -> int | None:
        return 1 if digest in self.table else None


@dataclass
class FakeStore:
    """Objects and partial files of one domain, by digest."""

    objects: dict[bytes, int] = field(default_factory=dict)
    partials: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    verified: Callable[[Callable[[int, int], None]], Verified] | None = None

    def domains(self) -> list[str]:
        return ["node"] if self.objects or self.partials else []

    def iterate(self, domain: str) -> Iterator[ObjectInfo]:
        for digest, size in list(self.objects.items()):
            yield ObjectInfo(domain, digest, size, size)

    def iterate_partials(self, domain: str) -> Iterator[ObjectInfo]:
        for digest, (size, here) in list(self.partials.items()):
            yield ObjectInfo(domain, digest, size, here)

    def usage(self) -> Usage:
        size, here = sum(self.objects.values()), sum(here for _, here in self.partials.values())
        return Usage(size + here, 0, 0, {"node": DomainUsage(len(self.objects), size, len(self.partials), here)})

    def evict(self, candidates: Iterable[tuple[str, bytes, int]], _wanted: int) -> Evicted:
        (_, digest, _), *_ = candidates
        if digest in self.objects:
            return Evicted(self.objects.pop(digest), 1, 0)
        return Evicted(self.partials.pop(digest)[1], 0, 1)

    def verify(self, progress: Callable[[int, int], None]) -> Verified:
        assert self.verified is not None
        return self.verified(progress)


def layer(number: int, table: dict[bytes, int], last_used_ns: int = 0) -> Any:
    record = SimpleNamespace(last_used_ns=last_used_ns)
    return SimpleNamespace(number=number, domain="node", index=FakeIndex(table), record=record)


@dataclass
class FakeShelf:
    layers: dict[int, Any] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)

    def all(self) -> tuple[Any, ...]:
        return tuple(self.layers.values())

    def get(self, number: int) -> Any:
        return self.layers.get(number)

    def broken(self) -> dict[int, str]:
        return self.lost


class FakeEnding:
    unmounting = False
    code: int | None = None

    def end_from_thread(self, exit_code: int) -> None:
        self.code = exit_code


class DirectBridge:
    """Runs what would cross to the loop on a loop of its own."""

    def call(self, function: Callable[..., Awaitable[Any]], *args: Any, timeout_s: float) -> Any:
        async def bounded() -> Any:
            with trio.fail_after(timeout_s):
                return await function(*args)

        return trio.run(bounded)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    ticks = itertools.count(1)
    opened = State(tmp_path / "state.db", lambda: next(ticks))
    yield opened
    opened.close()


def node(
    tmp_path: Path,
    state: State,
    store: FakeStore,
    shelf: FakeShelf,
    housekeeping: Any = None,
    failures: dict[int, str] | None = None,
    credential_problems: dict[str, str] | None = None,
    keeper_pid: int = 11,
) -> Node:
    config = replace(Config(), root=tmp_path, run_dir=tmp_path / "r", cache=CacheConfig(quota=1000, min_free=0))
    healthy = SimpleNamespace(problems=lambda: iter(()))
    room = SimpleNamespace(shelf=shelf, counters=Counters(), housekeeping=housekeeping or healthy)
    return Node(
        config,
        Identity("fuse", "because", 7, 1),
        state,
        cast("Any", store),
        cast("Any", room),
        cast("Any", DirectBridge()),
        cast("Any", FakeEnding()),
        lambda: failures or {},
        cast("Any", SimpleNamespace(fuse_requests={"lookup": 3}, view=lambda **given: given)),
        lambda: credential_problems or {},
        cast("Any", SimpleNamespace(keeper_pid=keeper_pid, device="")),
        StrandedContainers(tmp_path),
    )


def record_layer(state: State, name: str, *images: str) -> int:
    digest = Digest("sha256:" + name * 64)
    made = state.record_layer(
        layer_digest=digest, toc_digest=digest, domain="node", index_revision=1, blob_size=99, media_type="m",
        codec="gzip", toc_offset=1, toc_end=2, payload_end=1, verified=True, prefetch_size=None,
    )  # fmt: skip
    for image in images:
        state.add_source(made.number, image, digest)
    assert all(isinstance(source, LayerSource) for source in state.sources(made.number))
    return made.number


def snapshot(state: State, key: str, **values: Any) -> None:
    with state.write() as db:
        state_snapshots.insert(db, NewSnapshot(key, None, Kind.COMMITTED, 1, values.pop("labels", {}), **values))


def test_layers_are_listed_by_image_from_the_bottom_up_with_what_is_here(tmp_path: Path, state: State) -> None:
    whole, part, gone = (
        record_layer(state, "a", IMAGE, "other:1"),
        record_layer(state, "b", IMAGE),
        record_layer(state, "c", IMAGE),
    )
    for number, key in ((whole, "1"), (part, "2"), (gone, "3")):
        snapshot(state, key, layer_number=number, reference=IMAGE)
    label = {"containerd.io/snapshot/cri.layer-digest": "sha256:" + "d" * 64}
    snapshot(state, "4", not_lazy=Reason.DENIED, not_lazy_message="by the admin", reference=IMAGE, labels=label)
    snapshot(state, "5")
    shelf = FakeShelf({whole: layer(whole, {A: 10}), part: layer(part, {A: 10, B: 30, C: 60})}, {gone: "index lost"})
    store = FakeStore({A: 10}, {C: (60, 25)})
    rows = layer_rows(state, cast("Any", shelf), cast("Any", store))
    seen = [(row.image, row.digest[7], row.state, row.size, row.present, row.reason, row.detail) for row in rows]
    assert seen == [
        ("other:1", "a", LayerState.COMPLETE, 10, 10, "", ""),
        (IMAGE, "a", LayerState.COMPLETE, 10, 10, "", ""),
        (IMAGE, "b", LayerState.LAZY, 100, 35, "", ""),
        (IMAGE, "c", LayerState.FAILED, 0, 0, "", "index lost"),
        (IMAGE, "d", LayerState.ORDINARY, 0, 0, "denied-by-config", "by the admin"),
    ]
    assert rows[0].blob_size == 99


def test_cached_images_count_a_file_of_several_of_their_layers_once(tmp_path: Path, state: State) -> None:
    base, upper, gone = (
        record_layer(state, "a", IMAGE, "other:1"),
        record_layer(state, "b", IMAGE),
        record_layer(state, "c", "third:1"),
    )
    for number, key in ((base, "1"), (upper, "2"), (gone, "3")):
        snapshot(state, key, layer_number=number, reference=IMAGE)
    snapshot(state, "4", not_lazy=Reason.DENIED, not_lazy_message="by the admin", reference=IMAGE)
    shelf = FakeShelf(
        {base: layer(base, {A: 10, B: 30}, last_used_ns=5), upper: layer(upper, {B: 30, C: 60}, last_used_ns=9)},
        {gone: "index lost"},
    )
    store = FakeStore({B: 30, D: 1000}, {C: (60, 25)})
    images = list(node(tmp_path, state, store, shelf).cache_images())
    seen = [(one.image, one.lazy, one.ordinary, one.failed, one.size, one.present, one.last_use_ns) for one in images]
    assert seen == [
        ("other:1", 1, 0, 0, 40, 30, 5),
        (IMAGE, 2, 1, 0, 100, 55, 9),
        ("third:1", 0, 0, 1, 0, 0, 0),
    ]


def test_cached_images_keep_sharing_domains_apart(tmp_path: Path, state: State) -> None:
    one, two = record_layer(state, "a", IMAGE), record_layer(state, "b", IMAGE)
    for number in (one, two):
        snapshot(state, str(number), layer_number=number, reference=IMAGE)
    elsewhere = layer(two, {A: 10})
    elsewhere.domain = "another"
    shelf = FakeShelf({one: layer(one, {A: 10}), two: elsewhere})
    (image,) = node(tmp_path, state, FakeStore({A: 10}), shelf).cache_images()
    assert (image.size, image.present) == (20, 10)


def test_activity_is_told_what_the_configuration_and_the_store_say(tmp_path: Path, state: State) -> None:
    given = cast("Any", node(tmp_path, state, FakeStore({A: 10}), FakeShelf()).activity())
    assert given == {"plane": "fuse", "started_at_ns": 1, "cache_used": 10, "cache_quota": 1000}


def test_cache_list_tells_who_names_a_file_and_when_it_was_used(tmp_path: Path, state: State) -> None:
    shelf = FakeShelf({1: layer(1, {A: 10, C: 60}, last_used_ns=5), 2: layer(2, {A: 10}, last_used_ns=9)})
    store = FakeStore({A: 10, B: 20}, {C: (60, 25)})
    files = list(node(tmp_path, state, store, shelf).cache_files())
    seen = [
        (file.name[7:9], file.size, file.present, file.complete, file.referenced, file.last_use_ns) for file in files
    ]
    assert seen == [("01", 10, 10, True, True, 9), ("02", 20, 20, True, False, 0), ("03", 60, 25, False, True, 5)]


def test_usage_counts_what_no_layer_names(tmp_path: Path, state: State) -> None:
    shelf = FakeShelf({1: layer(1, {A: 10})})
    usage = node(tmp_path, state, FakeStore({A: 10, B: 20}, {C: (60, 25)}), shelf).cache_usage()
    assert usage.unreferenced == 45
    assert (usage.used, usage.quota, usage.high_water, usage.low_water) == (55, 1000, 950, 850)
    assert usage.capacity >= usage.free > 0


def test_prune_takes_what_no_layer_names_and_stops_at_keep(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "PRUNE_STEP", 20)
    shelf = FakeShelf({1: layer(1, {A: 10})})
    store = FakeStore({A: 10, B: 20, C: 30}, {D: (60, 25)})
    steps = list(node(tmp_path, state, store, shelf).prune(include_referenced=False, keep=50))
    assert steps[0] == PruneStep(1, 20, 35)
    assert steps[-1] == PruneStep(2, 50, 50, done=True)
    assert set(store.objects) == {A}
    assert set(store.partials) == {D}
    list(node(tmp_path, state, store, shelf).prune(include_referenced=False, keep=0))
    assert store.objects == {A: 10}
    assert store.partials == {}


def test_prune_of_everything_goes_by_the_order_of_eviction_until_nothing_leaves(tmp_path: Path, state: State) -> None:
    asked = []

    async def free(wanted: int) -> Evicted:
        asked.append(wanted)
        return Evicted(bytes=40, objects=2) if len(asked) < 3 else Evicted()

    store = FakeStore({A: 100})
    pruning = node(tmp_path, state, store, FakeShelf(), SimpleNamespace(free=free))
    assert list(pruning.prune(include_referenced=True, keep=10))[-1] == PruneStep(4, 80, 80, done=True)
    assert asked == [90, 50, 10]


def test_verify_reports_its_steps_and_what_was_bad(tmp_path: Path, state: State) -> None:
    def verified(progress: Callable[[int, int], None]) -> Verified:
        progress(10, 30)
        progress(30, 30)
        return Verified(2, 1, 30, 0, [ObjectInfo("node", A, 10, 10)], 1)

    last = list(node(tmp_path, state, FakeStore(verified=verified), FakeShelf()).verify())[-1]
    assert (last.files_checked, last.bytes_checked, last.done) == (2, 30, True)
    assert [(bad.domain, bad.name[:9]) for bad in last.bad] == [("node", "sha256:01"), ("", "1 chunks")]
    assert last.missing == ()


def test_verify_tells_everything_that_is_missing_however_much_it_is(tmp_path: Path, state: State) -> None:
    """A message of gRPC holds 4 MiB, and a whole cache that somebody deleted is more than that."""
    gone = [ObjectInfo("node", number.to_bytes(32, "big"), 0, 0) for number in range(1001)]

    def verified(_progress: Callable[[int, int], None]) -> Verified:
        return Verified(bad_objects=[ObjectInfo("node", A, 10, 10)], missing=gone)

    steps = list(node(tmp_path, state, FakeStore(verified=verified), FakeShelf()).verify())
    told = [file for step in steps for file in step.missing]
    assert [(file.domain, file.name) for file in told] == [
        (info.domain, f"sha256:{info.digest.hex()}") for info in gone
    ]
    assert [len(step.bad) for step in steps if step.bad] == [1]
    assert max(len(step.missing) for step in steps) <= 200
    assert [step.done for step in steps].count(True) == 1
    assert steps[-1].done


def test_verify_broken_off_ends_the_work(tmp_path: Path, state: State) -> None:
    ended = []

    def verified(progress: Callable[[int, int], None]) -> Verified:
        try:
            while True:
                progress(1, 2)
        finally:
            ended.append(True)

    steps = cast("Any", node(tmp_path, state, FakeStore(verified=verified), FakeShelf()).verify())
    next(steps)
    steps.close()
    assert ended == [True]


def test_verify_passes_the_disk_s_refusal_on(tmp_path: Path, state: State) -> None:
    def verified(_progress: Callable[[int, int], None]) -> Verified:
        raise StoreError("the disk is failing")

    with pytest.raises(StoreError, match="the disk is failing"):
        list(node(tmp_path, state, FakeStore(verified=verified), FakeShelf()).verify())


def test_status_names_the_problems(tmp_path: Path, state: State) -> None:
    made = node(tmp_path, state, FakeStore({A: 10}), FakeShelf({1: layer(1, {})}, {2: "its index is damaged"}))
    assert made.status().problems == (
        "layer 2 could not be mounted again: its index is damaged; remove its image and pull it again",
    )
    made._room.counters.verification_failures = 1
    made._config = replace(made._config, cache=CacheConfig(min_free=1 << 62))
    status = made.status()
    assert (status.layers_lazy, status.layers_failed, status.session, status.cache_used) == (1, 1, 7, 10)
    assert ["could not" in status.problems[0], "min_free" in status.problems[1], "digest" in status.problems[2]] == [
        True
    ] * 3


def test_status_shows_why_credentials_cannot_be_had(tmp_path: Path, state: State) -> None:
    made = node(tmp_path, state, FakeStore(), FakeShelf(), credential_problems={"r.test": "the helper hangs"})
    assert made.status().problems == ("the helper hangs",)


def test_teardown_ends_the_daemon_only_if_it_was_done(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = node(tmp_path, state, FakeStore(), FakeShelf())
    ending = cast("FakeEnding", made._ending)

    def answer(*_: object, force: bool) -> TeardownView:
        assert ending.unmounting
        return TeardownView((UserView("c", "", "/m", ()),), (), done=force)

    monkeypatch.setattr(node_module, "teardown", answer)
    made.teardown(force=False)
    assert (ending.unmounting, ending.code) == (False, None)
    made.teardown(force=True)
    assert (ending.unmounting, ending.code) == (True, TORN_DOWN)


def test_teardown_that_fails_leaves_the_daemon_as_it_was(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = node(tmp_path, state, FakeStore(), FakeShelf())

    def refuse(*_: object, force: bool) -> TeardownView:
        raise PlaneError("busy")

    monkeypatch.setattr(node_module, "teardown", refuse)
    with pytest.raises(PlaneError):
        made.teardown(force=True)
    ending = cast("FakeEnding", made._ending)
    assert (ending.unmounting, ending.code) == (False, None)
