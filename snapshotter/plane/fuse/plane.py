"""The fuse plane as the service sees it: layers become lower directories below the node's one FUSE mount.

Called from gRPC threads. What it needs of the layer room runs on the trio loop, through the bridge that it is given.
Nothing here opens a path inside the FUSE mount.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar, TypeVarTuple

import pyfuse3

from snapshotter.errors import NotLazy, Reason
from snapshotter.plane.fuse.inodes import Fixed, Numbers
from snapshotter.plane.fuse.kernel import MOUNT_NAME
from snapshotter.plane.fuse.operations import LAYERS_NAME
from snapshotter.plane.links import Links
from snapshotter.plane.overlays import overlay_options, without_repeats
from snapshotter.request import AttachedLayer, LayerRequest, LowerDirs, LowerLayer

LINKS_NAME: Final = "l"
RELEASE_TIMEOUT_S: Final = 120.0
"""Content that nobody else names is deleted on the way, file by file."""

_LAZY_TARGET: Final = re.compile(rf"\.\./{MOUNT_NAME}/[0-9]+/{LAYERS_NAME.decode()}/(?P<layer>[0-9]+)")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Numbered(Protocol):
    """A layer that has its number."""

    @property
    def number(self) -> int:
        """Its layer number."""


class Layers(Protocol):
    """What the plane needs of the layer room."""

    async def resolve(self, request: LayerRequest) -> Numbered:
        """Attach the layer, or raise NotLazy."""

    async def release(self, number: int) -> None:
        """Forget a layer and what only it needs."""

    def describe(self, number: int) -> AttachedLayer:
        """What is known of a layer; from any thread. Raises NotFound, StoreError."""

    def touch(self, numbers: Sequence[int]) -> None:
        """Note a use; from any thread."""


class Call(Protocol):
    """Runs an async function on the trio loop from another thread, with a deadline."""

    def __call__(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, timeout_s: float) -> T:
        """Its result; TimeoutError after `timeout_s`."""


class FusePlane:
    """Fulfils the service's `LazyLayers` with one FUSE session.

    `run_dir` holds the mount (`fuse`) and the links (`l`); `snapshot_fs` gives the directory of an ordinary snapshot.
    """

    def __init__(
        self,
        run_dir: Path,
        session: int,
        layers: Layers,
        snapshot_fs: Callable[[int], Path],
        call: Call,
        attach_timeout_s: float,
        invalidate: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self.links = Links(run_dir / LINKS_NAME)
        # Relative, so that the link says the same wherever the run directory is seen.
        self._layers_path = f"../{MOUNT_NAME}/{session}/{LAYERS_NAME.decode()}"
        self._layers = layers
        self._layers_inode = Numbers(session).of_fixed(Fixed.LAYERS)
        self._snapshot_fs = snapshot_fs
        self._call = call
        self._attach_timeout_s = attach_timeout_s
        self._invalidate = invalidate or partial(pyfuse3.invalidate_entry_async, ignore_enoent=True)
        # containerd may mount now what an earlier process answered.
        self.links.repoint(self._of_this_session)

    def attach(self, request: LayerRequest) -> AttachedLayer:
        """Resolve, check and record one layer; it can be used when this returns.

        Raises:
            NotLazy: with the reason.
        """
        try:
            layer = self._call(self._layers.resolve, request, timeout_s=self._attach_timeout_s)
        except TimeoutError as error:
            raise NotLazy(Reason.TIMEOUT, f"the layer was not ready in time: {error}") from error
        return self._layers.describe(layer.number)

    def describe(self, number: int) -> AttachedLayer:
        """What is known of a recorded layer, without any network. Raises NotFound, StoreError."""
        return self._layers.describe(number)

    def release(self, number: int) -> None:
        """Drop a layer that no snapshot names any more.

        The kernel is told to forget its name: numbers are never used again, and what it remembers below would stay
        in memory until that is short.
        """
        self._call(self._layers.release, number, timeout_s=RELEASE_TIMEOUT_S)
        self._invalidate(self._layers_inode, b"%d" % number)

    def lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool, room: int) -> LowerDirs:  # noqa: ARG002
        """Links for `lowerdir=`, topmost first. On this plane a layer is whole by itself, for an extraction too.

        containerd shortens the links where they are many, so `room` does not matter. Raises PlaneError: a link cannot
        be written.
        """
        paths = tuple(self.link(lower) for lower in without_repeats(chain))
        lazy = any(lower.layer_number is not None for lower in chain)
        return LowerDirs(paths, overlay_options() if lazy and not extraction else ())

    def link(self, lower: LowerLayer) -> str:
        """The link to one layer, made if need be. Raises PlaneError."""
        return self.links.point(lower.snapshot_id, self._target(lower))

    def view_mount(self, layer: LowerLayer) -> tuple[str, str, tuple[str, ...]]:
        """(type, source, options) of a read-only mount of one layer alone.

        An overlay above an empty directory, since a bind would inherit `nosuid` and `nodev` of the FUSE mount.
        """
        return "overlay", "overlay", (f"lowerdir={self.link(layer)}:{self.links.empty}",)

    def touch(self, numbers: Sequence[int]) -> None:
        """Note that a Prepare or Mounts named these layers just now."""
        self._layers.touch(numbers)

    def forget_snapshots(self, live: Collection[int], below: int) -> None:
        """Remove the links of every snapshot id under `below` that is not among `live`."""
        self.links.forget(live, below)

    def failures(self) -> dict[int, str]:
        """Layers that this plane cannot serve as it should: none."""
        return {}

    def _of_this_session(self, target: str) -> str:
        lazy = _LAZY_TARGET.fullmatch(target)
        return f"{self._layers_path}/{lazy['layer']}" if lazy else target

    def _target(self, lower: LowerLayer) -> str:
        if lower.layer_number is None:
            return str(self._snapshot_fs(lower.snapshot_id))
        return f"{self._layers_path}/{lower.layer_number}"
