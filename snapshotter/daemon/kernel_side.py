"""What the kernel asks of this process: mounted, or taken over, and answered.

Loads little: readers of a daemon that takes over wait for it.
"""

# ruff: noqa: PLC0415 (loaded where a fresh mount needs it)

import logging
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio
from pyfuse3 import FUSEError

from snapshotter import __version__
from snapshotter.config import Config
from snapshotter.daemon.custody import Custody, Inherited, with_plane
from snapshotter.daemon.ending import Ending
from snapshotter.daemon.gate_numbers import EXTRA_NUMBERS, GateNumbers
from snapshotter.daemon.last_words import LastWords, report
from snapshotter.errors import PlaneError, TakeOverRefused
from snapshotter.keeper.program import abort
from snapshotter.layer.room import LayerRoom
from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.fuse.in_hand import InHand, Request
from snapshotter.plane.fuse.inodes import INODE_REVISION
from snapshotter.plane.fuse.kernel import FS_TYPE, MOUNT_NAME, Connection, open_connection
from snapshotter.plane.fuse.operations import LayerOperations
from snapshotter.plane.fuse.record import RECORD_REVISION, SessionRecord, root_mark
from snapshotter.plane.fuse.redelivery import Sweep, answer_read, refuse, resend, sweep
from snapshotter.plane.fuse.session import FuseSession
from snapshotter.plane.mounts import mounts_on
from snapshotter.plane.probe import PlaneChoice
from snapshotter.store.state import State

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelSide:
    """What the kernel's requests meet."""

    gate: Gate
    operations: LayerOperations
    in_hand: InHand
    take_overs: int

    @property
    def requests(self) -> Mapping[str, int]:
        """What the kernel has asked since the start, by kind of request."""
        return self.operations.requests

    @property
    def failures(self) -> Mapping[str, int]:
        """What of it was answered with an error that says that something is wrong."""
        return self.operations.failures


@dataclass(frozen=True, slots=True)
class Handover:
    """What a daemon that begins has from the ones before it, and leaves to the next.

    `inherited` is None on a fresh mount, `plane` if it is not known yet, which happens on an inherited one only.
    """

    custody: Custody
    inherited: Inherited | None
    last_words: LastWords
    session: int
    plane: PlaneChoice | None


async def serve_fuse(
    nursery: trio.Nursery, config: Config, state: State, handover: Handover, place: str, room: LayerRoom, ending: Ending
) -> KernelSide:
    """Mount, or take a mount over, and answer the kernel from now on.

    Raises:
        TakeOverRefused: the connection cannot be taken over; it is untouched.
        PlaneError: the kernel refused.
    """
    inherited = handover.inherited
    mark = root_mark(config.root)
    if inherited is not None and inherited.record.root != mark:
        raise TakeOverRefused(f"it was mounted for another root directory than {config.root}, or for a copy of it")
    if inherited is not None and inherited.record.session != await trio.to_thread.run_sync(state.last_session):
        # Another mount has been made for this root since, and its files were given the same numbers.
        raise TakeOverRefused("it is older than the last mount that was made for this root directory")
    convicted = handover.last_words.convicted(inherited.died_ns if inherited else None)
    in_hand = handover.last_words.begin()
    if inherited is None:
        connection, record = await trio.to_thread.run_sync(_mount, config, state, handover)
        record = replace(record, root=mark)
    else:
        connection, record = inherited.connection, inherited.record.taken_over()
    extra_numbers = config.run_dir / EXTRA_NUMBERS
    gate = Gate(room.contents, GateNumbers(state, extra_numbers), nursery, place, open_waits=room.waits)
    await gate.load()
    operations = LayerOperations(room.shelf, handover.session, config.root, gate=gate, in_hand=in_hand)
    fuse = FuseSession(connection, operations)

    sweeps: list[Sweep | None] = []

    def redeliver(fd: int) -> None:
        fresh_name = connection.mount_point / str(handover.session) / f"newest-{time.monotonic_ns()}"
        sweeps.append(_redeliver(fd, convicted, fresh_name, resends=config.take_over.resend))

    await fuse.handshake(
        record, partial(handover.custody.keep, connection.fd), redeliver if inherited else lambda _: None
    )

    async def answer(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await fuse.serve(handover.session, fresh=inherited is None, task_status=task_status)
        except* PlaneError:
            if not ending.unmounting:
                raise

    await nursery.start(answer)
    for swept in filter(None, sweeps):
        nursery.start_soon(_after_sweep, connection.fd, swept, operations)
    # A keeper that is slow to answer holds up nobody else.
    await trio.to_thread.run_sync(handover.custody.serving)
    nursery.start_soon(handover.custody.watch)
    if inherited is not None:
        log.info("took over the FUSE connection of version %s (take-over %d)", record.version, record.take_overs)
    return KernelSide(gate, operations, in_hand, record.take_overs)


def _mount(config: Config, state: State, handover: Handover) -> tuple[Connection, SessionRecord]:
    """A fresh mount, on which the kernel knows no file of the gate. Blocking. Raises PlaneError, StoreError."""
    from snapshotter.daemon.stranded import StrandedContainers
    from snapshotter.daemon.users import find_users

    StrandedContainers(config.run_dir).add(find_users(config.run_dir, config.root))
    mount_point = config.run_dir / MOUNT_NAME
    for left in mounts_on(mount_point):
        if left.fs_type == FS_TYPE:
            # Nobody will answer there any more, whoever holds a copy of its descriptor: its readers are told.
            abort(int(left.device.partition(":")[2]))
    connection = open_connection(mount_point)
    state.begin_mount()
    (config.run_dir / EXTRA_NUMBERS).unlink(missing_ok=True)
    record = SessionRecord(
        RECORD_REVISION,
        INODE_REVISION,
        handover.session,
        connection.init,
        b"",
        connection.device,
        str(connection.mount_point),
        __version__,
    )
    return connection, record if handover.plane is None else with_plane(record, handover.plane)


def _redeliver(fd: int, convicted: Collection[Request], fresh_name: Path, *, resends: bool) -> Sweep | None:
    """Have what the daemon before had in hand asked again; returns what a sweep leaves to do once we serve.

    On the loop: nothing is served before.
    """
    if resends and resend(fd):
        if convicted:
            report(convicted, refuse(fd, convicted))
        return None
    swept = sweep(fd, fresh_name)
    if swept is None:
        log.warning("this kernel does not send again what the daemon before had in hand: who waits for that hangs")
        return None
    log.info("%d requests that the daemon before had in hand were answered with ESTALE, to be asked again", swept.told)
    return swept


async def _after_sweep(fd: int, swept: Sweep, operations: LayerOperations) -> None:
    """Answer the READ that pyfuse3 has not seen, and see a helper process off."""
    if (taken := swept.read) is not None:
        try:
            data = await operations.read(taken.request.inode, taken.request.argument, taken.size)
        except FUSEError:
            data = None
        answer_read(fd, taken, data)
    if swept.child:
        await trio.to_thread.run_sync(os.waitpid, swept.child, 0, abandon_on_cancel=True)
