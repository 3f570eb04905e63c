"""The erofs plane as the service sees it: the kernel serves names and attributes, and every content that is on the node.

    lowerdir=<layer n>:…:<layer 1>::<objects>::<gate>::<late>::<fail>

A lazy layer is an EROFS mount; contents come from the data-only directories behind the `::`, in this order. A layer that has no
EROFS mount, for whatever reason, is named by its directory in the FUSE mount instead: that is whole by itself.

Called from gRPC threads, like the fuse plane that it stands on.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from snapshotter.errors import FormatError, PlaneError, SnapshotterError
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.fuse.operations import FAIL_NAME, GATE_NAME
from snapshotter.plane.fuse.plane import Call, FusePlane
from snapshotter.plane.overlays import METACOPY_ON, without_repeats
from snapshotter.request import AttachedLayer, LayerRequest, LowerDirs, LowerLayer

OBJECTS, GATE, LATE, FAIL = "objects", "gate", "late", "fail"
"""Links in `<run>/l` to the data-only directories."""

IMAGE_WAIT_S: Final = 15.0
"""So long a pull waits for a layer's image; after that the layer goes through FUSE until the image is there."""
CALL_TIMEOUT_S: Final = 30.0
RETRY_AFTER_S: Final = 60.0
"""So long a layer that could not be mounted is served through FUSE without another attempt."""

log = logging.getLogger(__name__)


class Images(Protocol):
    """What the plane needs of the layer room besides what the fuse plane does."""

    def image_path(self, number: int) -> Path:
        """Where a layer's EROFS image lies, or would lie; from any thread. Raises NotFound."""

    async def image(self, number: int) -> Path:
        """Have the image on disk. Raises SnapshotterError."""

    async def begin_image(self, number: int, *, anew: bool) -> None:
        """Have the image written, `anew` if it is damaged, without waiting for it. Raises NotFound."""

    def image_failure(self, number: int) -> str | None:
        """Why it could not be written the last time; from any thread. Raises NotFound."""

    def size_in_layer(self, number: int) -> tuple[str, Callable[[bytes], int | None]]:
        """A layer's sharing domain, and what gives the size of a file by its digest; from any thread. Raises NotFound."""


class Disputes(Protocol):
    """What the plane needs of the gate."""

    def __call__(self, domain: str, size_of: Callable[[bytes], int | None]) -> bool:
        """Whether a layer contradicts what the gate has told the kernel."""


class ErofsPlane:
    """Fulfils the service's `LazyLayers` with EROFS mounts beside the FUSE mount."""

    def __init__(
        self,
        fuse: FusePlane,
        mounts: ErofsMounts,
        images: Images,
        disputes: Disputes,
        call: Call,
        root: Path,
        session: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fuse = fuse
        self._mounts = mounts
        self._images = images
        self._disputes = disputes
        self._call = call
        self._clock = clock
        self._failures: dict[int, tuple[float, str]] = {}
        served = f"../{MOUNT_NAME}/{session}"
        places = {
            OBJECTS: str(root / "objects"),
            GATE: f"{served}/{GATE_NAME.decode()}",
            LATE: str(root / "late"),
            FAIL: f"{served}/{FAIL_NAME.decode()}",
        }
        data = [fuse.links.point(name, target) for name, target in places.items()]
        # An empty path before each makes the "::" of a data-only layer.
        self._data = tuple(part for link in data for part in ("", link))

    def bring_back(self, numbers: Iterable[int]) -> None:
        """Mount every layer whose image is on disk, and take away what else is mounted; at the start. No network.

        Images that are missing or damaged are written while the daemon serves already.
        """
        wanted = {number: self._images.image_path(number) for number in numbers}
        self._mounts.bring_back(wanted)
        for number in wanted:
            self._mount_point(number)

    def attach(self, request: LayerRequest) -> AttachedLayer:
        """Resolve, check, record and mount one layer. Raises NotLazy."""
        layer = self._fuse.attach(request)
        try:
            self._call(self._images.image, layer.number, timeout_s=IMAGE_WAIT_S)
        except (SnapshotterError, TimeoutError) as error:
            log.info("layer %d is served through FUSE for now: %s", layer.number, error)
        self._mount_point(layer.number)
        return layer

    def describe(self, number: int) -> AttachedLayer:
        """What is known of a recorded layer, without any network. Raises NotFound, StoreError."""
        return self._fuse.describe(number)

    def release(self, number: int) -> None:
        """Drop a layer that no snapshot names any more, and its mount."""
        self._fuse.release(number)
        self._failures.pop(number, None)
        try:
            self._mounts.drop(number)
        except PlaneError as error:
            # Its record is gone, so that nobody would ask again; the next start takes the mount away.
            log.warning("layer %d stays mounted until the next start: %s", number, error)

    def lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool, room: int) -> LowerDirs:
        """EROFS mounts and links for `lowerdir=`, topmost first, then the data-only directories.

        For an extraction the layers are those of the FUSE mount: whole by themselves, without any `::`. Above metadata alone
        the kernel refuses even a stat of a file that has content (EPERM), if whoever unpacks mounts the overlay. A chain
        that does not fit into `room` gets the same.

        Raises:
            PlaneError: a link cannot be written.
        """
        lower_dirs = None if extraction else self._composed(chain)
        if lower_dirs is not None:
            options = ",".join((*lower_dirs.options, "lowerdir=" + ":".join(lower_dirs.paths)))
            if len(options.encode()) <= room:
                return lower_dirs
            log.info("a chain of %d layers does not fit into mount options: served through FUSE", len(chain))
        return self._fuse.lowerdirs(chain, extraction=extraction, room=room)

    def _composed(self, chain: Sequence[LowerLayer]) -> LowerDirs | None:
        """The chain with its EROFS mounts; None if it has not one."""
        points = {
            lower.layer_number: self._mount_point(lower.layer_number)
            for lower in chain
            if lower.layer_number is not None
        }
        if not any(points.values()):
            return None
        paths = []
        for lower in without_repeats(chain):
            point = None if lower.layer_number is None else points[lower.layer_number]
            paths.append(self._fuse.link(lower) if point is None else str(point))
        return LowerDirs((*paths, *self._data), METACOPY_ON)

    def view_mount(self, layer: LowerLayer) -> tuple[str, str, tuple[str, ...]]:
        """(type, source, options) of a read-only mount of one layer alone: an overlay, since a bind would show zeros."""
        mount_point = None if layer.layer_number is None else self._mount_point(layer.layer_number)
        if mount_point is None:
            return self._fuse.view_mount(layer)
        lower = ":".join((str(mount_point), *self._data))
        return "overlay", "overlay", (*METACOPY_ON, f"lowerdir={lower}")

    def touch(self, numbers: Sequence[int]) -> None:
        """Note that a Prepare or Mounts named these layers just now."""
        self._fuse.touch(numbers)

    def forget_snapshots(self, live: Collection[int], below: int) -> None:
        """Remove the links of every snapshot id under `below` that is not among `live`."""
        self._fuse.forget_snapshots(live, below)

    def failures(self) -> dict[int, str]:
        """Layers that are served through FUSE although this plane runs, and why."""
        return {number: why for number, (_, why) in tuple(self._failures.items())}

    def _mount_point(self, number: int) -> Path | None:
        """Where a layer is mounted, now if it was not; None if that cannot be, which is kept and said.

        Never waits for an image: an RPC of containerd stands here.
        """
        if (point := self._mounts.mounted(number)) is not None:
            return point
        failed = self._failures.get(number)
        if failed is not None and self._clock() < failed[0] + RETRY_AFTER_S:
            return None
        try:
            point = self._mount(number)
            why = None if point else self._images.image_failure(number)
        except (SnapshotterError, OSError, MemoryError) as error:
            point, why = None, str(error) or type(error).__name__
        if why is None:
            self._failures.pop(number, None)
        else:
            if failed is None or failed[1] != why:
                log.warning("layer %d has no EROFS mount and is served through FUSE: %s", number, why)
            self._failures[number] = self._clock(), why
        return point

    def _mount(self, number: int) -> Path | None:
        """Mount the image if it is there and good, else have it written. Raises SnapshotterError, OSError."""
        path = self._images.image_path(number)
        domain, size_of = self._images.size_in_layer(number)
        if self._disputes(domain, size_of):
            raise FormatError(
                "its image gives a file another size than one that containers use already; remove the image that you "
                "trust less"
            )
        if not path.exists():
            self._call(partial(self._images.begin_image, anew=False), number, timeout_s=CALL_TIMEOUT_S)
            return None
        try:
            return self._mounts.ensure(number, path)
        except FormatError as error:
            log.warning("layer %d: %s; it is written again", number, error)
            self._call(partial(self._images.begin_image, anew=True), number, timeout_s=CALL_TIMEOUT_S)
            return None
