"""The planes put together: what the service is given."""

from snapshotter.config import Config
from snapshotter.layer.room import LayerRoom
from snapshotter.plane.erofs.backing import EROFS_MOUNTS, Backing
from snapshotter.plane.erofs.gate import Gate
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.erofs.plane import ErofsPlane
from snapshotter.plane.erofs.probing import clear_trial
from snapshotter.plane.fuse.plane import Call, FusePlane
from snapshotter.plane.probe import PlaneChoice
from snapshotter.service.directories import SnapshotDirectories

ATTACH_SLACK_S = 10.0
"""The layer room keeps its own deadline and says what it waited for; so much later it is cut off without a word."""


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
