"""The layers that are attached on this node, by number; brought back at start without any network.

A layer's files on disk are named by what they hold, so one TOC and one index serve every record that names them, and
go when the last such record goes.
"""

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from snapshotter.errors import ConfigError, FailedPrecondition, FormatError, NotFound, SnapshotterError, StoreError
from snapshotter.format.index import INDEX_REVISION, NODES_REVISION, FileIdentity, Index
from snapshotter.layer.counters import Counters
from snapshotter.layer.disk_reads import DiskReads
from snapshotter.layer.flights import Flights
from snapshotter.layer.layer import Layer
from snapshotter.layer.metadata_images import MetadataImages
from snapshotter.layer.sources import RegistryAccess, Source
from snapshotter.layer.toc_jobs import Job, index_path, toc_path
from snapshotter.layer.toc_pool import TocPool
from snapshotter.layer.waits import Waits
from snapshotter.registry.reference import parse_reference
from snapshotter.request import AttachedLayer
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import LayerRecord, LayerSource, State

log = logging.getLogger(__name__)


class Shelf:
    """Attached layers. Changed on the trio thread only; `get` is what every FUSE request begins with."""

    def __init__(
        self,
        nursery: trio.Nursery,
        root: Path,
        state: State,
        store: ObjectStore,
        registry: RegistryAccess,
        flights: Flights,
        pool: TocPool,
        counters: Counters,
        waits: Waits,
    ) -> None:
        self._root = root
        self._state = state
        self._store = store
        self._registry = registry
        self._pool = pool
        self.metadata_images = MetadataImages(
            nursery,
            root / "erofs",
            store.place,
            pool,
            self.index_path,
            lambda: [layer.record for layer in self._layers.values()],
        )
        self._make = partial(
            Layer, store=store, flights=flights, counters=counters, siblings=self, disk=DiskReads(), waits=waits
        )
        self._layers: dict[int, Layer] = {}
        self._broken: dict[int, str] = {}
        self._opening: Counter[str] = Counter()
        self._opened = 0
        self._leaving: dict[str, trio.Event] = {}

    def get(self, number: int) -> Layer | None:
        """The layer with that number, or None."""
        return self._layers.get(number)

    def record(self, number: int) -> LayerRecord:
        """The record of an attached layer. Raises NotFound."""
        layer = self._layers.get(number)
        if layer is None:
            raise NotFound(f"layer {number} is not attached on this node")
        return layer.record

    def all(self) -> tuple[Layer, ...]:
        """Every attached layer."""
        return tuple(self._layers.values())

    def broken(self) -> dict[int, str]:
        """Layers that could not be brought back, and why."""
        return dict(self._broken)

    def describe(self, number: int) -> AttachedLayer:
        """What the service tells containerd of a layer. Raises NotFound, StoreError."""
        layer = self._layers.get(number)
        if layer is None:
            if number in self._broken:
                raise StoreError(f"layer {number}: {self._broken[number]}; remove its image and pull it again")
            raise NotFound(f"layer {number} is not attached on this node")
        index = layer.index
        root = index.attributes(0)
        return AttachedLayer(
            number=number,
            layer_digest=layer.record.layer_digest,
            toc_digest=layer.record.toc_digest,
            size=index.content_size,
            inodes=index.inode_count,
            root_uid=root.uid,
            root_gid=root.gid,
            root_mode=root.mode & 0o7777,
        )

    async def restore(self) -> None:
        """Attach every recorded layer from disk; what fails is logged and kept as broken, the others go on."""
        records = await trio.to_thread.run_sync(self._state.layers)
        for record in records:
            try:
                await self._restore(record)
            except (SnapshotterError, OSError) as error:
                self._broken[record.number] = str(error)
                log.error("layer %s cannot be brought back: %s", record.layer_digest, error)  # noqa: TRY400 (expected)
            except Exception as error:
                # Whatever lies on the disk: one layer must not keep the daemon from starting.
                self._broken[record.number] = f"internal error {error!r}"
                log.exception("layer %s cannot be brought back", record.layer_digest)

    async def _restore(self, record: LayerRecord) -> None:
        if record.index_revision != INDEX_REVISION:
            record = await self._renew(record)
        path = self.index_path(record)
        try:
            # A torn one would be believed as a whole: its image would be written from it, with a hash that fits.
            opening = partial(Index.open, path, check=self._store.after_power_loss)
            index = await trio.to_thread.run_sync(opening)
        except (FormatError, OSError) as error:
            log.warning("layer %s: its index is built again: %s", record.layer_digest, error)
            await self._rebuild(record)
            index = Index.open(path)
        if record.complete and self._store.after_power_loss:
            # That was on disk at once, the content with the next sync: background fill looks again.
            await trio.to_thread.run_sync(partial(self._state.set_progress, record.number, complete=False))
            record = replace(record, complete=False)
        sources = await trio.to_thread.run_sync(self._state.sources, record.number)
        self._layers[record.number] = self._make(record, index, self._sources(record, sources))

    async def _renew(self, record: LayerRecord) -> LayerRecord:
        """A layer that another version left: its index in this revision, and a new number if nodes have others now."""
        log.info("layer %s: its index is written anew for this version", record.layer_digest)
        await self._rebuild(replace(record, index_revision=INDEX_REVISION))
        same_nodes = record.index_revision >= NODES_REVISION
        change = self._state.reindex_layer if same_nodes else self._state.renumber_layer
        renewed = await trio.to_thread.run_sync(change, record.number, INDEX_REVISION)
        await trio.to_thread.run_sync(self._drop_files, record)
        return renewed

    async def _rebuild(self, record: LayerRecord) -> None:
        """Build an index in this version's revision anew from the kept TOC."""
        await self._pool.run(
            Job(
                section=str(toc_path(self._root / "tocs", record.toc_digest)),
                flavor="",
                codec=record.codec,
                toc_offset=record.toc_offset,
                toc_end=record.toc_end,
                toc_raw_size=None,
                payload_end=record.payload_end,
                blob_size=record.blob_size,
                layer_digest=record.layer_digest,
                toc_digest=record.toc_digest,
                section_digest=None,
                allow_unverified=not record.verified,
                toc_directory=str(self._root / "tocs"),
                index_directory=str(self._root / "index"),
            )
        )

    def index_path(self, record: LayerRecord) -> Path:
        """Where a record's index lies."""
        return index_path(self._root / "index", record.toc_digest, record.layer_digest, record.index_revision)

    @asynccontextmanager
    async def opening(self, layer_digest: str) -> AsyncIterator[None]:
        """Keep `release` from the layers with this blob digest, after waiting for one under way.

        All layers of an image are opened at its first Prepare, while a removal of the same image may still be at work
        on those that nobody asked for yet: one released between its record and its place here would stay unusable.
        """
        while (left := self._leaving.get(layer_digest)) is not None:
            await left.wait()
        self._opening[layer_digest] += 1
        self._opened += 1
        try:
            yield
        finally:
            self._opening[layer_digest] -= 1
            if not self._opening[layer_digest]:
                del self._opening[layer_digest]

    async def attach(self, record: LayerRecord, source: LayerSource) -> Layer:
        """Attach a recorded layer whose index is on disk, or give an attached one another source.

        Raises FormatError, OSError.
        """
        layer = self._layers.get(record.number)
        if layer is None:
            layer = self._make(record, Index.open(self.index_path(record)), self._sources(record, [source]))
            self._layers[record.number] = layer
            self._broken.pop(record.number, None)
        else:
            layer.origin.add_sources(self._sources(record, [source]))
        return layer

    def _sources(self, record: LayerRecord, sources: Iterable[LayerSource]) -> list[Source]:
        found = []
        for source in sources:
            try:
                reference = parse_reference(source.reference)
            except ConfigError as error:
                log.warning("layer %s: a recorded source cannot be used: %s", record.layer_digest, error)
                continue
            found.append(Source(self._registry, reference, record.layer_digest, record.blob_size))
        return found

    def note_progress(self, number: int, *, complete: bool) -> None:
        """A layer's prefetch, or the whole layer, is on the node."""
        layer = self._layers.get(number)
        if layer is not None:
            layer.record = replace(layer.record, prefetched=True, complete=complete or layer.record.complete)

    def note_losses(self) -> list[Layer]:
        """Files have left the cache: no layer counts as complete any more. Returns those that did."""
        lost = [layer for layer in self._layers.values() if layer.record.complete]
        for layer in lost:
            layer.record = replace(layer.record, complete=False)
        return lost

    def naming(self, layer: Layer, identity: FileIdentity) -> Iterator[tuple[Layer, int]]:
        """Other layers of the same domain that name this file, with their node of it.

        Every chunk must agree: a TOC may name the digest of another image's file and lie about its chunks.
        """
        for other in tuple(self._layers.values()):
            if other is layer or other.domain != layer.domain:
                continue
            node = other.index.find(identity.digest)
            if node is not None and other.index.identity(node) == identity:
                yield other, node

    def by_last_use(self, in_use: dict[int, bool]) -> list[Layer]:
        """Layers, those first that may lose their content first: not active before active, long unused before used."""
        return sorted(
            self._layers.values(),
            key=lambda layer: (in_use.get(layer.number, False), layer.record.last_used_ns),
        )

    def touch(self, numbers: Iterable[int]) -> int:
        """Note a use of layers now; returns the Unix time in ns that was noted."""
        now_ns = time.time_ns()
        for number in numbers:
            layer = self._layers.get(number)
            if layer is not None:
                layer.record = replace(layer.record, last_used_ns=now_ns)
        return now_ns

    async def release(self, number: int, *, drop_content: bool) -> None:
        """Forget a layer: its record, its files and, if wanted, the content that no other layer names.

        Raises FailedPrecondition if it is just being opened again.
        """
        try:
            record = await trio.to_thread.run_sync(self._state.layer, number)
        except NotFound:
            return
        digest = record.layer_digest
        if self._opening[digest]:
            raise FailedPrecondition(f"layer {digest} is just being pulled again; it stays")
        left = self._leaving[digest] = trio.Event()
        try:
            await self._release(record, drop_content=drop_content)
        finally:
            del self._leaving[digest]
            left.set()

    async def _release(self, record: LayerRecord, *, drop_content: bool) -> None:
        layer = self._layers.pop(record.number, None)
        self._broken.pop(record.number, None)
        if layer is not None:
            layer.released = True
            await layer.origin.close()
            if drop_content:
                others = [other.index for other in self._layers.values() if other.domain == layer.domain]
                await trio.to_thread.run_sync(self._drop_content, layer, others)
        await trio.to_thread.run_sync(self._state.forget_layer, record.number)
        await trio.to_thread.run_sync(self._drop_files, record)

    def _drop_content(self, layer: Layer, others: list[Index]) -> None:
        # One pass over each index: looking every file up in every other would be a hundred times the work.
        only = {digest for digest, _, _ in layer.index.digests()}
        for other in others:
            only.difference_update(digest for digest, _, _ in other.digests())
        for digest in only:
            self._store.remove(layer.domain, digest)

    async def drop_orphans(self) -> bool:
        """Delete TOCs and indexes of layers that are not on record: a daemon was killed before it recorded them.

        False if layers are just being opened, whose files cannot be told from those.
        """
        opened = self._opened
        records = await trio.to_thread.run_sync(self._state.layers)
        if self._opening or self._opened != opened:
            return False
        named = {toc_path(self._root / "tocs", record.toc_digest) for record in records}
        named |= {self.index_path(record) for record in records}
        # On this thread, so that none is opened meanwhile; there are hardly ever any.
        for folder in ("tocs", "index"):
            for path in (self._root / folder).iterdir():
                if path not in named:
                    path.unlink(missing_ok=True)
        return True

    def _drop_files(self, record: LayerRecord) -> None:
        left = self._state.layers()
        if not any(other.toc_digest == record.toc_digest for other in left):
            toc_path(self._root / "tocs", record.toc_digest).unlink(missing_ok=True)
        path = self.index_path(record)
        if not any(self.index_path(other) == path for other in left):
            path.unlink(missing_ok=True)
        self.metadata_images.drop(record, left)
