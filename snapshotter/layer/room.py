"""The layer room put together: what the daemon starts, and what a plane is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from snapshotter.config import Config
from snapshotter.errors import NotFound
from snapshotter.layer.contents import Contents
from snapshotter.layer.counters import Counters
from snapshotter.layer.courier import Courier
from snapshotter.layer.fill import Fill
from snapshotter.layer.flights import Flights
from snapshotter.layer.housekeeping import Housekeeping
from snapshotter.layer.images import Images
from snapshotter.layer.layer import Layer
from snapshotter.layer.manifests import LocalContent, ManifestStore
from snapshotter.layer.opening import Opener
from snapshotter.layer.outage import OutagePolicy
from snapshotter.layer.priority import Gates, Priority
from snapshotter.layer.shelf import Shelf
from snapshotter.layer.sources import RegistryAccess
from snapshotter.layer.toc_pool import TocPool
from snapshotter.layer.waits import Waits
from snapshotter.request import AttachedLayer, LayerRequest
from snapshotter.store.disk import disk_errors
from snapshotter.store.objects import ObjectStore
from snapshotter.store.real_directory import real_directory
from snapshotter.store.state import State

TOC_JOB_TIMEOUT_S = 120.0
DIRECTORIES = ("tocs", "index", "manifests", "erofs")


@dataclass(frozen=True, slots=True)
class LayerRoom:
    """The parts that others talk to."""

    shelf: Shelf
    images: Images
    fill: Fill
    housekeeping: Housekeeping
    pool: TocPool
    contents: Contents
    counters: Counters
    state: State
    waits: Waits
    gates: Gates

    async def resolve(self, request: LayerRequest) -> Layer:
        """The layer that containerd asked for, attached. Raises NotLazy with the reason."""
        return await self.images.resolve(request)

    async def release(self, number: int) -> None:
        """Forget a layer that no snapshot names, and what only it needs."""
        await self.housekeeping.release(number)

    def describe(self, number: int) -> AttachedLayer:
        """What is known of a layer; from any thread. Raises NotFound, StoreError."""
        return self.shelf.describe(number)

    def image_path(self, number: int) -> Path:
        """Where a layer's EROFS image lies, or would lie; from any thread. Raises NotFound."""
        return self.shelf.metadata_images.path(self.shelf.record(number))

    def tidy_images(self) -> None:
        """Delete EROFS images that no recorded layer has; at the start, before any is written. Blocking."""
        self.shelf.metadata_images.tidy(self.state.layers())

    async def image(self, number: int) -> Path:
        """Have a layer's EROFS image on disk. Raises SnapshotterError, NotFound."""
        return await self.shelf.metadata_images.ensure(self.shelf.record(number))

    async def begin_image(self, number: int, *, anew: bool) -> None:
        """Have a layer's EROFS image written, without waiting for it. Raises NotFound."""
        self.shelf.metadata_images.begin(self.shelf.record(number), anew=anew)

    def image_failure(self, number: int) -> str | None:
        """Why a layer's EROFS image could not be written; from any thread. Raises NotFound."""
        return self.shelf.metadata_images.failure(self.shelf.record(number))

    def size_in_layer(self, number: int) -> tuple[str, Callable[[bytes], int | None]]:
        """A layer's sharing domain, and what gives the size of a small file by its digest. Raises NotFound."""
        layer = self.shelf.get(number)
        if layer is None:
            raise NotFound(f"layer {number} is not attached on this node")
        index = layer.index

        def size_of(digest: bytes) -> int | None:
            node = index.find(digest)
            return None if node is None or index.chunk_count(node) != 1 else index.attributes(node).size

        return layer.domain, size_of

    def touch(self, numbers: Sequence[int]) -> None:
        """Note that a Prepare or Mounts named these layers just now; from threads that may wait for the disk."""
        if numbers:
            self.state.touch_layers(numbers, self.shelf.touch(numbers))

    async def restore(self) -> None:
        """Bring back every recorded layer from disk. Needs no network."""
        await self.shelf.restore()

    def start(self, nursery: trio.Nursery) -> None:
        """Begin what runs in the background."""
        nursery.start_soon(self.pool.serve)
        nursery.start_soon(self.fill.run)
        nursery.start_soon(self.housekeeping.run)
        for layer in self.shelf.all():
            self.fill.begin(layer)


def assemble(
    nursery: trio.Nursery,
    config: Config,
    root: Path,
    state: State,
    store: ObjectStore,
    registry: RegistryAccess,
    local: LocalContent | None = None,
) -> LayerRoom:
    """Join the parts; starts nothing. `nursery` is where fetches run, and must outlive every reader.

    `local` is asked for manifests before the registry is.

    Raises:
        StoreError: a directory below `root` cannot be used, or is a link to somewhere else.
    """
    for name in DIRECTORIES:
        with disk_errors(f"use {root / name}"):
            real_directory(root / name)
    for left_over in (root / "tocs").glob("section-*"):
        left_over.unlink(missing_ok=True)
    counters, waits, gates = Counters(), Waits(), Gates()

    def count_opening(host: str, size: int) -> None:
        counters.fetched[Priority.DEMAND] += size
        counters.of_host(host).fetched[Priority.DEMAND] += size

    courier = Courier(store, gates, counters, config.fetch.background_bandwidth)
    flights = Flights(nursery, courier, counters, OutagePolicy(config.fetch.outage_wait_s), config.fetch.demand_window)
    pool = TocPool(nursery, TOC_JOB_TIMEOUT_S)
    shelf = Shelf(nursery, root, state, store, registry, flights, pool, counters, waits)

    async def note_progress(number: int, *, complete: bool) -> None:
        shelf.note_progress(number, complete=complete)
        await trio.to_thread.run_sync(
            lambda: state.set_progress(number, prefetched=True, complete=True if complete else None)
        )

    fill = Fill(nursery, courier, flights, counters, config.fetch, note_progress, store.has_room)
    manifests = ManifestStore(registry, root / "manifests", local)
    opener = Opener(registry, pool, root, count_opening, state.tails)
    images = Images(
        nursery,
        manifests,
        opener,
        shelf,
        fill,
        state,
        config.lazy,
        config.cache.share,
    )
    housekeeping = Housekeeping(store, shelf, manifests, state, config.cache, counters, fill.refill)
    contents = Contents(shelf, store, counters)
    return LayerRoom(shelf, images, fill, housekeeping, pool, contents, counters, state, waits, gates)
