"""What the service asks of a plane.

A plane fulfils `LazyLayers`; the daemon passes it in. Every method is called from gRPC threads and may block.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from snapshotter.request import AttachedLayer, LayerRequest, LowerDirs, LowerLayer


class LazyLayers(Protocol):
    """Lazily pulled layers, as lower directories."""

    def attach(self, request: LayerRequest) -> AttachedLayer:
        """Resolve, check and record one layer, and make it usable.

        Raises:
            NotLazy: with the reason; the layer becomes an ordinary snapshot.
        """

    def describe(self, number: int) -> AttachedLayer:
        """Return what is known of a recorded layer, without any network.

        Raises:
            NotFound: no such layer.
            StoreError: its files on this node are damaged or gone.
        """

    def release(self, number: int) -> None:
        """Drop a layer that no snapshot names any more, its record included; nothing happens if it is gone already."""

    def lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool, room: int) -> LowerDirs:
        """Return what an overlay names below itself, and make the links that it names.

        `chain` is topmost first. Equal layers appear once. `extraction`: containerd will unpack a layer on top, and
        splits the option at every ":"; the answer then has no empty path. `room`: bytes that `lowerdir=` and further
        options may take in all.

        Raises:
            PlaneError: the chain cannot be expressed.
        """

    def view_mount(self, layer: LowerLayer) -> tuple[str, str, tuple[str, ...]]:
        """Return (type, source, options) of a read-only mount of one lazy layer alone."""

    def touch(self, numbers: Sequence[int]) -> None:
        """Note that a Prepare or Mounts named these layers just now."""

    def forget_snapshots(self, live: Collection[int], below: int) -> None:
        """Remove the links of snapshots that are gone: every id under `below` that is not among `live`.

        Ids from `below` on are left alone: such a snapshot may have come since `live` was read.
        """
