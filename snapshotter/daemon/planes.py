"""The planes put together: what the kernel asks of this process, and what the service is given for it."""

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from snapshotter import __version__
from snapshotter.config import Config
from snapshotter.daemon.ending import Ending
from snapshotter.errors import PlaneError
from snapshotter.layer.room import LayerRoom
from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.erofs.mounting import Backing, ErofsMounts
from snapshotter.plane.erofs.plane import ErofsPlane
from snapshotter.plane.erofs.probing import clear_trial
from snapshotter.plane.fuse.kernel import open_connection
from snapshotter.plane.fuse.operations import LayerOperations
from snapshotter.plane.fuse.plane import MOUNT_NAME, Call, FusePlane
from snapshotter.plane.fuse.session import FuseSession
from snapshotter.plane.probe import PlaneChoice
from snapshotter.service.directories import SnapshotDirectories
from snapshotter.store.state import State

EROFS_MOUNTS = "e"
"""Directory in the run directory: names of its mounts stand in every overlay, and must be short."""

ATTACH_SLACK_S = 10.0
"""The layer room keeps its own deadline and says what it waited for; so much later it is cut off without a word."""


@dataclass(frozen=True, slots=True)
class KernelSide:
    """What the kernel's requests meet."""

    gate: Gate
    operations: LayerOperations

    @property
    def requests(self) -> Mapping[str, int]:
        """What the kernel has asked since the start, by kind of request."""
        return self.operations.requests

    @property
    def failures(self) -> Mapping[str, int]:
        """What of it was answered with an error that says that something is wrong."""
        return self.operations.failures


async def serve_fuse(
    nursery: trio.Nursery, config: Config, state: State, session: int, place: str, room: LayerRoom, ending: Ending
) -> KernelSide:
    """Mount, and answer the kernel from now on.

    Raises:
        PlaneError: the kernel refused.
    """
    connection = await trio.to_thread.run_sync(open_connection, config.run_dir / MOUNT_NAME)
    # The mount is a fresh one: the kernel knows no file of the gate.
    await trio.to_thread.run_sync(state.begin_mount)
    gate = Gate(room.contents, state, nursery, place, open_waits=room.waits)
    await gate.load()
    operations = LayerOperations(room.shelf, session, config.root, gate=gate)
    fuse = FuseSession(connection, operations, session, __version__)
    await fuse.handshake()

    async def answer(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await fuse.serve(task_status=task_status)
        except* PlaneError:
            if not ending.unmounting:
                raise

    await nursery.start(answer)
    return KernelSide(gate, operations)


def build_plane(
    config: Config,
    choice: PlaneChoice,
    session: int,
    room: LayerRoom,
    gate: Gate,
    directories: SnapshotDirectories,
    call: Call,
) -> FusePlane | ErofsPlane:
    """Return the chosen plane, with the mounts of an earlier daemon brought back or taken away. Blocking.

    Raises:
        PlaneError: links or mounts cannot be made.
    """
    attach_timeout_s = config.lazy.resolve_timeout_s + ATTACH_SLACK_S
    fuse = FusePlane(config.run_dir, session, room, directories.fs, call, attach_timeout_s)
    mounts = ErofsMounts(config.run_dir / EROFS_MOUNTS, choice.backing or Backing.FILE)
    room.tidy_images()
    if choice.backing is None:
        clear_trial(config.root, config.run_dir)
        mounts.bring_back({})
        return fuse
    erofs = ErofsPlane(fuse, mounts, room, gate.disputes, call, config.root, session)
    erofs.bring_back(layer.number for layer in room.shelf.all())
    return erofs
