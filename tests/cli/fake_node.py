"""A daemon's control service with a scripted `NodeView`, on a real unix socket."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from snapshotter.service.control import ControlServicer
from snapshotter.service.control_views import (
    ActivityView,
    BadFileView,
    CachedFileView,
    CachedImageView,
    CacheUsageView,
    DomainView,
    HostAwayView,
    LayerState,
    LayerView,
    MissingFileView,
    PruneStep,
    StatusView,
    TeardownView,
    UserView,
    VerifyStep,
    VersionView,
    WaitKind,
    WaitView,
)

DIGESTS = [f"sha256:{number:02x}{'ab' * 31}" for number in range(8)]
IMAGE = "registry.example.org:5000/experiment/very/long/path/analysis-software-stack:2026-11-nightly"


def a_status() -> StatusView:
    return StatusView(
        version="0.1.0",
        pid=4242,
        started_at_ns=1,
        plane="fuse",
        plane_reason="this kernel has no EROFS",
        root="/var/lib/estargz",
        run_dir="/run/estargz",
        address="/run/estargz/snapshotter.sock",
        mountpoint="/run/estargz/fuse",
        session=3,
        snapshots=17,
        layers_lazy=9,
        layers_failed=1,
        fetched_demand=12_345_678,
        fetched_prefetch=1 << 30,
        fetched_background=0,
        integrity_failures=2,
        read_errors=1,
        cache_used=5 << 30,
        cache_quota=20 << 30,
        cache_free=100 << 30,
        problems=("layer sha256:00 could not be mounted again: its index is damaged; pull the image again",),
    )


def a_wait(**changes: Any) -> WaitView:
    waiting = WaitView(
        kind=WaitKind.READ,
        waited_ns=13_240_000_000,
        path="/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
        path_seen=True,
        digest=DIGESTS[5],
        size=7 << 20,
        layer=DIGESTS[0],
        image=IMAGE,
        reads=2,
        pid=4243,
        process="python3",
        container="ab" * 32,
        namespace="k8s.io",
        container_name="shop/web-7f9c/nginx",
    )
    return replace(waiting, **changes)


def an_activity(**changes: Any) -> ActivityView:
    quiet = ActivityView(
        clock_ns=1_000_000_000,
        plane="erofs",
        started_at_ns=1,
        layers_lazy=9,
        fetched_demand=1000,
        fetched_prefetch=0,
        fetched_background=0,
        fetching_demand=0,
        fetching_prefetch=0,
        fetching_background=0,
        cache_used=5 << 30,
        cache_quota=20 << 30,
        reads_waiting=0,
        lookups_waiting=0,
        longest_wait_ns=0,
        processes_seen=True,
        fuse_requests={"lookup": 10},
    )
    return replace(quiet, **changes)


BUSY = {
    "clock_ns": 3_000_000_000,
    "fetched_demand": 1000 + (3 << 20),
    "fetched_background": 4096,
    "fetching_demand": 2,
    "fuse_requests": {"lookup": 30, "read": 80},
    "reads_waiting": 2,
    "lookups_waiting": 1,
    "longest_wait_ns": 13_240_000_000,
    "away": (HostAwayView("registry.example.org", "no answer"),),
    "waits": (
        a_wait(),
        a_wait(
            kind=WaitKind.LOOKUP, waited_ns=400_000_000, path="/bin/sh", path_seen=False, pid=4244, container_name=""
        ),
        a_wait(pid=0, process="", container="", container_name=""),
    ),
}
"""What changes two seconds after `an_activity()`."""


def some_layers() -> tuple[LayerView, ...]:
    return (
        LayerView(IMAGE, DIGESTS[0], LayerState.COMPLETE, DIGESTS[7], size=80 << 20, present=80 << 20, number=1),
        LayerView(IMAGE, DIGESTS[1], LayerState.LAZY, DIGESTS[6], size=1 << 30, present=3 << 20, number=2),
        LayerView(
            IMAGE,
            DIGESTS[2],
            LayerState.ORDINARY,
            reason="not-a-lazy-format",
            detail="the blob ends with no footer of eStargz, stargz or zstd:chunked; convert the image first",
        ),
        LayerView("docker.io/library/\x1b[31mevil:1", DIGESTS[3], LayerState.FAILED, detail="index [bold]gone[/bold]"),
    )


@dataclass
class FakeNode:
    """What the daemon answers; `failure` is raised by every call, `users` block a teardown."""

    failure: Exception | None = None
    rows: tuple[LayerView, ...] = field(default_factory=some_layers)
    files: tuple[CachedFileView, ...] = (
        CachedFileView("node", DIGESTS[0], 4096, 4096, complete=True, referenced=True, last_use_ns=1),
        CachedFileView("node", "partial-name", 1 << 30, 5 << 20, complete=False, referenced=False, last_use_ns=0),
    )
    images: tuple[CachedImageView, ...] = (
        CachedImageView("a.example/small:1", 3, 0, 0, 1 << 20, 1 << 20, 1),
        CachedImageView(IMAGE, 2, 1, 1, 1 << 30, 3 << 20, time.time_ns()),
        CachedImageView("z.example/ordinary:1", 0, 4, 0, 0, 0, 0),
    )
    unreferenced: int = 1 << 20
    activities: list[ActivityView] = field(default_factory=lambda: [an_activity(), an_activity(**BUSY)])
    bad: tuple[BadFileView, ...] = ()
    missing: tuple[MissingFileView, ...] = ()
    users: tuple[UserView, ...] = ()
    calls: list[tuple[str, object]] = field(default_factory=list)

    def _called(self, name: str, argument: object = None) -> None:
        self.calls.append((name, argument))
        if self.failure is not None:
            raise self.failure

    def version(self) -> VersionView:
        self._called("version")
        return VersionView("0.1.0", "3.11.2", "6.18")

    def status(self) -> StatusView:
        self._called("status")
        return a_status()

    def layers(self) -> Iterator[LayerView]:
        self._called("layers")
        yield from self.rows

    def cache_usage(self) -> CacheUsageView:
        self._called("cache_usage")
        domains = (DomainView("node", 1234, 5 << 30, 3, 1 << 20),)
        return CacheUsageView(
            domains, 4096, self.unreferenced, 5 << 30, 20 << 30, 19 << 30, 17 << 30, 1 << 40, 1 << 30, 2 << 40
        )

    def cache_files(self) -> Iterator[CachedFileView]:
        self._called("cache_files")
        yield from self.files

    def cache_images(self) -> Iterator[CachedImageView]:
        self._called("cache_images")
        yield from self.images

    def activity(self) -> ActivityView:
        self._called("activity")
        return self.activities.pop(0) if len(self.activities) > 1 else self.activities[0]

    def prune(self, *, include_referenced: bool, keep: int) -> Iterator[PruneStep]:
        self._called("prune", (include_referenced, keep))
        yield PruneStep(1, 100, 300)
        yield PruneStep(3, 300, 300, done=True)

    def verify(self) -> Iterator[VerifyStep]:
        self._called("verify")
        yield VerifyStep(1, 100, 300, self.bad, self.missing[:1])
        yield VerifyStep(3, 300, 300, (), self.missing[1:], done=True)

    def teardown(self, *, force: bool) -> TeardownView:
        self._called("teardown", force)
        if self.users and not force:
            return TeardownView(self.users, (), done=False)
        return TeardownView(self.users, ("/run/estargz/fuse",), done=True)


@contextmanager
def serving(node: FakeNode, socket: Path) -> Iterator[None]:
    """Serve `node` on `socket` until the block ends."""
    server = grpc.server(ThreadPoolExecutor(4))
    ControlServicer(node).register(server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
