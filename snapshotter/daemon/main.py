"""The daemon: start each thing, push its undo, wait for the end.

The order is that of a take-over, whose gap is what readers notice: lock and state, layers back from disk, FUSE, and
only then what needs gRPC. No step needs the network. The end unmounts nothing and deletes nothing.
"""

# ruff: noqa: PLC0415 (imported in the order of the start: gRPC costs a tenth of a second that FUSE need not wait)

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio

from snapshotter import __version__
from snapshotter.config import Config
from snapshotter.daemon import fd_store, logs, preflight
from snapshotter.daemon.calls import CallTimes
from snapshotter.daemon.custody import Custody, Inherited, give_up
from snapshotter.daemon.ending import TORN_DOWN, Ending
from snapshotter.daemon.kernel_side import Handover, serve_fuse
from snapshotter.daemon.last_words import LastWords
from snapshotter.daemon.later import load_services
from snapshotter.daemon.notify import Notifier
from snapshotter.daemon.registries import RegistryClient, reach_registries
from snapshotter.daemon.standby import dismiss, expect_followers, stand_by
from snapshotter.errors import SnapshotterError, StoreError, TakeOverRefused
from snapshotter.layer.room import LayerRoom, assemble
from snapshotter.layer.sources import RegistryAccess
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.fuse.record import SessionRecord
from snapshotter.plane.probe import PlaneChoice, choose_plane, read_facts
from snapshotter.service.address import check_address
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.full_disk import open_with_room
from snapshotter.store.lock import RootLock
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State

if TYPE_CHECKING:
    from snapshotter.containerd.content import ContainerdContent
    from snapshotter.daemon.kernel_side import KernelSide
    from snapshotter.daemon.node import Node
    from snapshotter.daemon.services import Services

STOP_GRACE_S = 3.0
"""How long running calls may take after SIGTERM; containerd repeats those that are cut off."""

LOCK_WAIT_S = 5.0
"""So long the locks of a process may last that is dying: its memory is given back before them."""

PROOF_OF_LIFE_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything else stands on: what is on disk, and the number of the FUSE session."""

    state: State
    store: ObjectStore
    session: int


def run(config: Config, *, standby: bool = False) -> int:
    """Run the daemon until a signal or a teardown ends it; return its exit code.

    `standby`: while another daemon has these directories, wait for its end and take over then.

    Raises:
        SnapshotterError: it could not start, or lost what it cannot do without.
    """
    # Before anything is opened: their numbers are those that come first. And before the environment is remembered.
    stored = fd_store.inherited()
    environment = dict(os.environ)
    logs.set_up(config.log)
    faulthandler.register(signal.SIGUSR1)  # the stacks of all threads, for a daemon that seems to hang
    notifier = Notifier()
    preflight.check_root(os.geteuid())
    preflight.raise_file_limit()
    preflight.share_interpreter()
    with ExitStack() as undo:
        preflight.own_directory(config.root, "root")
        preflight.own_directory(config.run_dir, "run_dir")
        if standby and not stand_by(config, notifier, stored):
            return TORN_DOWN
        undo.callback(RootLock(config.root, wait_s=LOCK_WAIT_S).release)
        undo.callback(preflight.lock_run_dir(config, wait_s=LOCK_WAIT_S).release)
        expect_followers(config.run_dir)
        # Before anything is mounted: a start that must fail leaves nothing behind.
        check_address(config.socket)
        last_words = LastWords(config.run_dir)
        custody = Custody(config, notifier, stored)
        inherited = custody.take()
        # A connection that is there is served first: its readers wait.
        plane = known_plane(config, inherited.record) if inherited else find_plane(config)
        log.info("version %s, root %s", __version__, config.root)
        try:
            return trio.run(serve, config, plane, notifier, custody, inherited, last_words)
        except BaseExceptionGroup as group:
            error = _plain(group)
            if isinstance(error, TakeOverRefused) and inherited is not None:
                _begin_anew(custody, inherited, error, environment)
            last_words.error(error)
            raise error from None


def find_plane(config: Config) -> PlaneChoice:
    """Try which plane runs here, and tell the log. Raises PlaneError."""
    from snapshotter.plane.erofs.probing import probe

    plane = choose_plane(config.plane, read_facts(), partial(probe, config.root, config.run_dir))
    for warning in plane.warnings:
        log.warning("%s", warning)
    log.info("plane %s (%s)", plane.plane, plane.reason)
    return plane


def known_plane(config: Config, record: SessionRecord) -> PlaneChoice | None:
    """The plane that ran when the connection was mounted; None if another is wanted now, which is tried once we serve.

    A trial mounts an overlay, for which the kernel takes a lock that somebody may hold who waits for our first answer.
    """
    if not record.plane or config.plane not in ("auto", record.plane):
        return None
    backing = Backing(record.backing) if record.backing else None
    log.info("plane %s (%s)", record.plane, record.plane_reason)
    return PlaneChoice(record.plane, record.plane_reason, (), backing)


def _begin_anew(
    custody: Custody, inherited: Inherited, error: TakeOverRefused, environment: Mapping[str, str]
) -> NoReturn:
    """Give the old connection up and start once more: pyfuse3 serves one connection in the life of a process."""
    log.error("the FUSE connection of the daemon before cannot be taken over, a fresh one is mounted: %s", error)
    custody.drop()
    give_up(inherited.connection.fd, inherited.record.device)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _plain(group: BaseExceptionGroup) -> BaseException:
    """Return the one error of ours that ended everything, if nothing else is in the group."""
    ours, others = group.split(SnapshotterError)
    if ours is None or others is not None:
        return group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def serve(
    config: Config,
    plane: PlaneChoice | None,
    notifier: Notifier,
    custody: Custody,
    inherited: Inherited | None,
    last_words: LastWords,
) -> int:
    """Start everything, wait for the end, stop everything. The caller holds the locks. `plane`: None if not tried yet."""
    ending = Ending()
    started_at_ns = time.time_ns()
    async with AsyncExitStack() as undo:
        notifier.status("opening the cache; after a power loss every file in it is looked at")
        ground = await lay_ground(config, undo, inherited.record.session if inherited else None)
        async with trio.open_nursery() as nursery:
            await nursery.start(ending.end_on_signal)
            notifier.status("bringing layers back from disk")
            local = _local_content(config, undo)
            access = RegistryAccess()
            room = assemble(nursery, config, config.root, ground.state, ground.store, access, local)
            await room.restore()
            handover = Handover(custody, inherited, last_words, ground.session, plane)
            kernel = await serve_fuse(nursery, config, ground.state, handover, ground.store.place, room, ending)
            client = await reach_registries(config, undo)
            access.give(client.registry)
            if plane is None:
                plane = await trio.to_thread.run_sync(find_plane, config)
                await trio.to_thread.run_sync(custody.amend, plane)
                # The trial took its directory away, which is the images' too.
                (config.root / "erofs").mkdir(mode=0o700, exist_ok=True)
            room.images.with_metadata_images = plane.backing is not None
            room.start(nursery)
            with ExitStack() as listening:
                stop = await listen(config, ground, client, room, ending, plane, kernel, handover, started_at_ns)
                listening.callback(stop, 0.0)
                if notifier.watchdog_s is not None:
                    nursery.start_soon(_show_life, notifier, notifier.watchdog_s)
                nursery.start_soon(_prove_life, last_words)
                notifier.ready(f"{len(room.shelf.all())} lazy layers")
                log.info("serving on %s: %d lazy layers", config.socket, len(room.shelf.all()))
                await ending.wait()
                kernel.in_hand.clean()
                notifier.stopping()
                await trio.to_thread.run_sync(stop, STOP_GRACE_S)
                await trio.to_thread.run_sync(_last_things, config, ground, custody, ending.exit_code)
            nursery.cancel_scope.cancel()
    log.info("stopped; %s", "everything is unmounted" if ending.exit_code == TORN_DOWN else "mounts stay in place")
    return ending.exit_code


def _last_things(config: Config, ground: Ground, custody: Custody, exit_code: int) -> None:
    """What is to be done before the kernel is answered no more. Blocking."""
    if exit_code == TORN_DOWN:
        custody.drop()
        dismiss(config.run_dir)
    elif ground.store.dirty:
        # Now, and not at the close: who reads then waits for the next daemon.
        with suppress(StoreError):
            ground.store.sync()


def _close_store(store: ObjectStore) -> None:
    try:
        store.close()
    except StoreError as error:
        log.warning("the cache did not close in order; the next start looks at it more closely: %s", error)


async def lay_ground(config: Config, undo: AsyncExitStack, session: int | None) -> Ground:
    """Open what is on disk; what it pushes on `undo` closes it again, the last opened first. `session`: None for a new one."""
    opening = partial(_open_state, config.root, session)
    state, number = await trio.to_thread.run_sync(open_with_room, config.root, opening)
    undo.callback(state.close)

    def open_store() -> ObjectStore:
        return ObjectStore(config.root, CacheDB(config.root / "cache.db"), config.cache)

    # After a power loss this looks at every object once.
    store = await trio.to_thread.run_sync(open_with_room, config.root, open_store)
    undo.push_async_callback(trio.to_thread.run_sync, _close_store, store)
    return Ground(state, store, number)


def _open_state(root: Path, session: int | None) -> tuple[State, int]:
    """Return the open state and the session's number; that of a new one is the first write, for which there must be room."""
    state = State(root / "state.db")
    try:
        return state, state.next_session() if session is None else session
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


async def _prove_life(last_words: LastWords) -> None:
    """A daemon that served so long did not die of what the ones before had in hand."""
    await trio.sleep(PROOF_OF_LIFE_S)
    last_words.live()


async def listen(
    config: Config,
    ground: Ground,
    client: RegistryClient,
    room: LayerRoom,
    ending: Ending,
    plane: PlaneChoice,
    kernel: "KernelSide",
    handover: Handover,
    started_at_ns: int,
) -> Callable[[float], None]:
    """Answer containerd and the commands from now on; return what stops that, given the seconds of grace."""
    await trio.to_thread.run_sync(partial(load_services, metrics=bool(config.metrics.address)))
    from snapshotter.daemon.activity import Activity
    from snapshotter.daemon.node import Identity, Node
    from snapshotter.daemon.planes import build_plane
    from snapshotter.daemon.services import build_services
    from snapshotter.daemon.stranded import StrandedContainers
    from snapshotter.service.bridge import Bridge
    from snapshotter.service.directories import SnapshotDirectories

    bridge = Bridge(trio.lowlevel.current_trio_token())
    directories = SnapshotDirectories(config.root / "snapshots")
    lazy = await trio.to_thread.run_sync(
        build_plane, config, plane, ground.session, room, kernel.gate, directories, bridge.call
    )
    identity = Identity(plane.plane, plane.reason, ground.session, started_at_ns, kernel.take_overs)
    stranded = StrandedContainers(config.run_dir)
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
        client.registry.credential_problems,
        handover.custody,
        stranded,
    )
    calls = CallTimes() if config.metrics.address else None
    observe = calls.observe if calls else None
    build = partial(build_services, config, ground.state, directories, lazy, node, observe)
    services = await trio.to_thread.run_sync(build)
    services.server.start()
    if calls is None:
        return services.stop
    stop_metrics = await _measure(config, ground, client, room, kernel, services, calls, node, lazy.failures)

    def stop(grace_s: float) -> None:
        services.stop(grace_s)
        stop_metrics()

    return stop


async def _measure(
    config: Config,
    ground: Ground,
    client: RegistryClient,
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
            retries=client.retries,
            sick=LoopSample(token, client.registry.sick, {}),
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
