"""The daemon: start each thing, push its undo, wait for the end.

The order is that of a take-over, whose gap is what readers notice: lock and state, layers back from disk, FUSE, and
only then what needs gRPC. No step needs the network. The end unmounts nothing and deletes nothing.
"""

# ruff: noqa: PLC0415 (imported in the order of the start: gRPC costs a tenth of a second that FUSE need not wait)

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from snapshotter import __version__
from snapshotter.config import Config
from snapshotter.daemon import logs, preflight
from snapshotter.daemon.calls import CallTimes
from snapshotter.daemon.ending import TORN_DOWN, Ending
from snapshotter.daemon.notify import Notifier
from snapshotter.errors import SnapshotterError
from snapshotter.layer.room import LayerRoom, assemble
from snapshotter.plane.erofs.probing import probe
from snapshotter.plane.probe import PlaneChoice, choose_plane, read_facts
from snapshotter.registry.client import Registry
from snapshotter.registry.retry import RetryCounts, RetryPolicy
from snapshotter.service.address import check_address
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.full_disk import open_with_room
from snapshotter.store.lock import RootLock
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State

if TYPE_CHECKING:
    from snapshotter.containerd.content import ContainerdContent
    from snapshotter.daemon.node import Node
    from snapshotter.daemon.planes import KernelSide
    from snapshotter.daemon.services import Services

STOP_GRACE_S = 3.0
"""How long running calls may take after SIGTERM; containerd repeats those that are cut off."""

CLOSE_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything else stands on: what is on disk, and how the registries are reached."""

    state: State
    store: ObjectStore
    registry: Registry
    session: int
    retries: RetryCounts


def run(config: Config) -> int:
    """Run the daemon until a signal or a teardown ends it; return its exit code.

    Raises:
        SnapshotterError: it could not start, or lost what it cannot do without.
    """
    logs.set_up(config.log)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the stacks of all threads, for a daemon that seems to hang
    notifier = Notifier()
    preflight.check_root(os.geteuid())
    preflight.raise_file_limit()
    preflight.share_interpreter()
    with ExitStack() as undo:
        preflight.own_directory(config.root, "root")
        preflight.own_directory(config.run_dir, "run_dir")
        undo.callback(RootLock(config.root).release)
        undo.callback(preflight.lock_run_dir(config).release)
        # Before anything is mounted: a start that must fail leaves nothing behind.
        check_address(config.socket)
        plane = choose_plane(config.plane, read_facts(), partial(probe, config.root, config.run_dir))
        for warning in plane.warnings:
            log.warning("%s", warning)
        log.info("version %s, plane %s (%s), root %s", __version__, plane.plane, plane.reason, config.root)
        try:
            return trio.run(serve, config, plane, notifier)
        except BaseExceptionGroup as group:
            raise _plain(group) from None


def _plain(group: BaseExceptionGroup) -> BaseException:
    """Return the one error of ours that ended everything, if nothing else is in the group."""
    ours, others = group.split(SnapshotterError)
    if ours is None or others is not None:
        return group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(config: Config, plane: PlaneChoice, notifier: Notifier) -> int:
    """Start everything, wait for the end, stop everything. The caller holds the locks."""
    ending = Ending()
    started_at_ns = time.time_ns()
    async with AsyncExitStack() as undo:
        notifier.status("opening the cache; after a power loss every file in it is looked at")
        ground = await lay_ground(config, undo)
        async with trio.open_nursery() as nursery:
            await nursery.start(ending.end_on_signal)
            notifier.status("bringing layers back from disk")
            local = _local_content(config, undo)
            room = assemble(
                nursery,
                config,
                config.root,
                ground.state,
                ground.store,
                ground.registry,
                local,
                with_metadata_images=plane.backing is not None,
            )
            await room.start(nursery)
            kernel = await _serve_kernel(nursery, config, ground, room, ending)
            with ExitStack() as listening:
                stop = await listen(config, ground, room, ending, plane, kernel, started_at_ns)
                listening.callback(stop, 0.0)
                if notifier.watchdog_s is not None:
                    nursery.start_soon(_show_life, notifier, notifier.watchdog_s)
                notifier.ready(f"{len(room.shelf.all())} lazy layers")
                log.info("serving on %s: %d lazy layers", config.socket, len(room.shelf.all()))
                await ending.wait()
                notifier.stopping()
                await trio.to_thread.run_sync(stop, STOP_GRACE_S)
            nursery.cancel_scope.cancel()
    log.info("stopped; %s", "everything is unmounted" if ending.exit_code == TORN_DOWN else "mounts stay in place")
    return ending.exit_code


async def lay_ground(config: Config, undo: AsyncExitStack) -> Ground:
    """Open what is on disk; what it pushes on `undo` closes it again, the last opened first."""
    state, session = await trio.to_thread.run_sync(open_with_room, config.root, partial(_open_state, config.root))
    undo.callback(state.close)

    def open_store() -> ObjectStore:
        return ObjectStore(config.root, CacheDB(config.root / "cache.db"), config.cache)

    # After a power loss this looks at every object once.
    store = await trio.to_thread.run_sync(open_with_room, config.root, open_store)
    undo.push_async_callback(trio.to_thread.run_sync, store.close)
    policy = RetryPolicy(config.registry.retries)
    registry = Registry(config.registry, config.fetch.connections_per_host, policy=policy)
    undo.push_async_callback(_close_registry, registry)
    return Ground(state, store, registry, session, policy.counts)


def _open_state(root: Path) -> tuple[State, int]:
    """Return the open state and the number of the session that begins: the first write, for which there must be room."""
    state = State(root / "state.db")
    try:
        return state, state.next_session()
    except BaseException:
        state.close()
        raise


def _local_content(config: Config, undo: AsyncExitStack) -> Callable[[str, str], bytes | None]:
    """Return what reads manifests from containerd's store; it loads gRPC when it is first called."""

    @lru_cache(maxsize=1)
    def content() -> "ContainerdContent":
        from snapshotter.containerd.content import ContainerdContent

        made = ContainerdContent(config.containerd.address)
        undo.callback(made.close)
        return made

    return lambda namespace, digest: content().manifest(namespace, digest)


async def _close_registry(registry: Registry) -> None:
    with trio.move_on_after(CLOSE_TIMEOUT_S):
        await registry.aclose()


async def _serve_kernel(
    nursery: trio.Nursery, config: Config, ground: Ground, room: LayerRoom, ending: Ending
) -> "KernelSide":
    """Mount, and answer the kernel from now on. Raises PlaneError."""
    from snapshotter.daemon.planes import serve_fuse

    return await serve_fuse(nursery, config, ground.state, ground.session, ground.store.place, room, ending)


async def listen(
    config: Config,
    ground: Ground,
    room: LayerRoom,
    ending: Ending,
    plane: PlaneChoice,
    kernel: "KernelSide",
    started_at_ns: int,
) -> Callable[[float], None]:
    """Answer containerd and the commands from now on; return what stops that, given the seconds of grace."""
    from snapshotter.daemon.activity import Activity
    from snapshotter.daemon.node import Identity, Node
    from snapshotter.daemon.planes import build_plane
    from snapshotter.daemon.services import build_services
    from snapshotter.service.bridge import Bridge
    from snapshotter.service.directories import SnapshotDirectories

    bridge = Bridge(trio.lowlevel.current_trio_token())
    directories = SnapshotDirectories(config.root / "snapshots")
    lazy = await trio.to_thread.run_sync(
        build_plane, config, plane, ground.session, room, kernel.gate, directories, bridge.call
    )
    identity = Identity(plane.plane, plane.reason, ground.session, started_at_ns)
    activity = Activity(room, ground.state, kernel.gate, kernel.operations, ground.session, bridge)
    node = Node(
        config,
        identity,
        ground.state,
        ground.store,
        room,
        bridge,
        ending,
        lazy.failures,
        activity,
        ground.registry.credential_problems,
    )
    calls = CallTimes() if config.metrics.address else None
    observe = calls.observe if calls else None
    build = partial(build_services, config, ground.state, directories, lazy, node, observe)
    services = await trio.to_thread.run_sync(build)
    services.server.start()
    if calls is None:
        return services.stop
    stop_metrics = await _measure(config, ground, room, kernel, services, calls, node, lazy.failures)

    def stop(grace_s: float) -> None:
        services.stop(grace_s)
        stop_metrics()

    return stop


async def _measure(
    config: Config,
    ground: Ground,
    room: LayerRoom,
    kernel: "KernelSide",
    services: "Services",
    calls: CallTimes,
    node: "Node",
    plane_failures: Callable[[], Mapping[int, str]],
) -> Callable[[], None]:
    """Answer scrapes from now on; return what stops that."""
    token = trio.lowlevel.current_trio_token()

    def begin() -> Callable[[], None]:
        from snapshotter.daemon.monitoring import begin_metrics
        from snapshotter.daemon.numbers import Numbers, Sources
        from snapshotter.daemon.sampling import LoopSample

        sources = Sources(
            state=ground.state,
            store=ground.store,
            shelf=room.shelf,
            counters=room.counters,
            waits=room.waits,
            fuse_requests=kernel.requests,
            fuse_failures=kernel.failures,
            retries=ground.retries,
            sick=LoopSample(token, ground.registry.sick, {}),
            pulls=services.pulls,
            calls=calls,
            problems=lambda: sum(1 for _ in node.problems()),
            plane_failures=plane_failures,
        )
        numbers = Numbers(config, node.identity, sources)
        return begin_metrics(config.metrics.address, numbers, node.lasting_problems.append)

    return await trio.to_thread.run_sync(begin)


async def _show_life(notifier: Notifier, every_s: float) -> None:
    """Tell the service manager that the loop turns."""
    while True:
        notifier.alive()
        await trio.sleep(every_s)
