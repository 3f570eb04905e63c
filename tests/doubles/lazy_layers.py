"""A plane made of plain directories: what the service asks of lazy layers, without FUSE and without a network."""

import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapshotter.errors import NotLazy, Reason
from snapshotter.request import AttachedLayer, LayerRequest, LowerDirs, LowerLayer
from snapshotter.store.state import LayerRecord, State

Fill = Callable[[Path], object]


@dataclass(slots=True)
class Offer:
    """One layer of a pretended registry: its TOC digest, what fills its directory, and what its TOC says."""

    toc_digest: str
    fill: Fill = lambda directory: None
    size: int = 1000
    inodes: int = 10
    root: tuple[int, int, int] = (0, 0, 0o755)
    domain: str = "node"


@dataclass(slots=True)
class FakeLazyLayers:
    """`LazyLayers` over directories in `home`; links are made in `links`, as a real plane does.

    `offers` by layer digest is what can be attached; `fault` is raised by every attach; `gate`, while not set, holds
    every attach. What was asked is kept in the lists.
    """

    state: State
    home: Path
    links: Path
    snapshot_fs: Callable[[int], Path]
    offers: dict[str, Offer] = field(default_factory=dict)
    fault: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    attached: list[LayerRequest] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    touched: list[tuple[int, ...]] = field(default_factory=list)
    extractions: list[bool] = field(default_factory=list)
    rooms: list[int] = field(default_factory=list)
    release_fault: Exception | None = None
    filling: threading.Lock = field(default_factory=threading.Lock)  # guards the directories in `home`

    def __post_init__(self) -> None:
        """Make the directories; the gate is open."""
        self.home.mkdir(exist_ok=True)
        self.links.mkdir(exist_ok=True)
        self.gate.set()

    def attach(self, request: LayerRequest) -> AttachedLayer:
        """Record the offered layer and fill its directory."""
        self.attached.append(request)
        self.entered.release()
        assert self.gate.wait(30), "the test never opened the gate"
        if self.fault is not None:
            raise self.fault
        offer = self.offers.get(request.layer_digest)
        if offer is None:
            raise NotLazy(Reason.NOT_LAZY_FORMAT, "no TOC in this layer")
        record = self.record(request.layer_digest, offer)
        self.state.add_source(record.number, request.reference, request.manifest_digest or "sha256:" + "0" * 64)
        directory = self.home / str(record.number)
        with self.filling:
            if not directory.exists():
                directory.mkdir()
                offer.fill(directory)
        return self.describe(record.number)

    def record(self, layer_digest: str, offer: Offer) -> LayerRecord:
        """Record an offer in the state."""
        return self.state.record_layer(
            layer_digest=layer_digest, toc_digest=offer.toc_digest, domain=offer.domain, index_revision=1,
            blob_size=500, media_type="application/vnd.oci.image.layer.v1.tar+gzip", codec="gzip", toc_offset=400,
            toc_end=449, payload_end=400, verified=True, prefetch_size=None,
        )  # fmt: skip

    def describe(self, number: int) -> AttachedLayer:
        """By what was offered."""
        record = self.state.layer(number)
        offer = self.offers[record.layer_digest]
        return AttachedLayer(number, record.layer_digest, record.toc_digest, offer.size, offer.inodes, *offer.root)

    def release(self, number: int) -> None:
        """Forget the record."""
        if self.release_fault is not None:
            raise self.release_fault
        self.state.forget_layer(number)
        self.released.append(number)

    def lowerdirs(self, chain: Sequence[LowerLayer], *, extraction: bool, room: int) -> LowerDirs:
        """One link per snapshot; of equal layers the topmost stays."""
        self.rooms.append(room)
        self.extractions.append(extraction)
        paths: list[str] = []
        seen: set[int] = set()
        for lower in chain:
            if lower.layer_number is not None and lower.layer_number in seen:
                continue
            if lower.layer_number is not None:
                seen.add(lower.layer_number)
            link = self.links / str(lower.snapshot_id)
            if not link.is_symlink():
                link.symlink_to(self._target(lower))
            paths.append(str(link))
        return LowerDirs(tuple(paths))

    def view_mount(self, layer: LowerLayer) -> tuple[str, str, tuple[str, ...]]:
        """A bind, as the fuse plane gives it."""
        return "bind", str(self._target(layer)), ("ro", "rbind")

    def touch(self, numbers: Sequence[int]) -> None:
        """Keep the numbers."""
        self.touched.append(tuple(numbers))

    def forget_snapshots(self, live: Collection[int], below: int) -> None:
        """Remove links."""
        for name in os.listdir(self.links):
            if int(name) < below and int(name) not in live:
                (self.links / name).unlink()

    def _target(self, lower: LowerLayer) -> Path:
        if lower.layer_number is None:
            return self.snapshot_fs(lower.snapshot_id)
        return self.home / str(lower.layer_number)
