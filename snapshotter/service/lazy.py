"""What the service asks of a plane: the protocol, and the values that cross it.

A plane fulfils `LazyLayers`; the daemon passes it in. Every method is called from gRPC threads and may block.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """One layer that containerd asked for, as its labels describe it. Digests are `sha256:<hex>`.

    `image_layers` holds this layer's digest and those above it, lowest first, as far as the label reached.
    `trusted_only`: the labels may be an image author's words; the layer counts only if the manifest named by
    `manifest_digest` contains it. `timeout_s`: how long an answer may take; None leaves it to the configuration.
    """

    namespace: str
    reference: str
    manifest_digest: str | None
    layer_digest: str
    image_layers: tuple[str, ...]
    toc_digest: str | None
    prefetch_size: int | None
    skip_verify: bool
    trusted_only: bool
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class AttachedLayer:
    """A layer that can be used as a lower directory from now on, and is recorded in the state under `number`.

    `size` is the uncompressed bytes and `inodes` the inodes by the layer's TOC; `root_*` are its root directory's.
    """

    number: int
    layer_digest: str
    toc_digest: str
    size: int
    inodes: int
    root_uid: int
    root_gid: int
    root_mode: int


@dataclass(frozen=True, slots=True)
class LowerLayer:
    """One committed snapshot of a chain; `layer_number` is None for an ordinary snapshot directory."""

    snapshot_id: int
    layer_number: int | None


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

    def lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool) -> tuple[str, ...]:
        """Return the paths for an overlay's `lowerdir=`, topmost first, and make the links that they name.

        `chain` is topmost first as well. Equal layers appear once. An empty path among the answer stands for the
        `::` before data-only layers. `extraction`: containerd will unpack a layer on top, and splits the option at
        every ":"; the answer then holds no empty path and only what unpacking needs.

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
