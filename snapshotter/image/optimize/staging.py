"""An image's layers as snapshots in containerd, under a lease: what is there is used, what is missing is fetched and unpacked.

A chain that some snapshotter has already, for instance ours, which mounts lazily, is as good as one that was just unpacked.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO

import trio

from snapshotter.containerd import ingest
from snapshotter.containerd.client import Client
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.errors import AlreadyExists, ContainerdError, SnapshotterError
from snapshotter.image.convert.layers import Watcher
from snapshotter.image.documents import ImageConfig
from snapshotter.image.labels import SNAPSHOT_REF, chain_ids, extraction_key
from snapshotter.image.optimize.kept_blobs import KeptBlobs
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import unheard
from snapshotter.image.unpacking import Active, unpack_layer
from snapshotter.registry.manifest import Descriptor, ImageManifest

_SIDE_BY_SIDE = 3
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a source; `name` is for messages."""

    name: str
    manifest: ImageManifest
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class Staged:
    """The committed snapshot of an image's whole chain; "" is the parent of an image without layers."""

    snapshots: Snapshots
    chain_id: str


class Stage:
    """Has images unpacked for as long as the client's lease lives."""

    def __init__(self, client: Client, snapshotters: Sequence[str]) -> None:
        """`snapshotters` are those that work; what is missing is unpacked into the first."""
        self._client = client
        self._all = [Snapshots(client, name) for name in snapshotters]
        self._open_keys: set[str] = set()

    async def have(self, image: Image, blobs: KeptBlobs, watcher: Watcher) -> Staged:
        """Return when every layer of an image is there.

        Raises:
            IntegrityError: a layer is not what its digest, or the image's configuration, says.
            SnapshotterError: what fetching from the source or containerd ends with; in a group with what other tasks did.
        """
        chain = chain_ids(image.config.diff_ids)
        if not chain:
            return Staged(self._all[0], "")
        for snapshots in self._all:
            if await self._has(snapshots, chain[-1]):
                return Staged(snapshots, chain[-1])
        snapshots = self._all[0]
        first = await self._first_missing(snapshots, chain)
        have = [trio.Event() for _ in chain]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fetch_all, image.manifest.layers, first, blobs, watcher, have)
            for number in range(first, len(chain)):
                await have[number].wait()
                # containerd does not say how far it is.
                with watcher.working(f"unpack layer {number + 1}/{len(chain)} in containerd", None):
                    await self._unpack(snapshots, image, number, chain)
        return Staged(snapshots, chain[-1])

    async def undo(self) -> None:
        """Remove active snapshots that an early end left; the end of the lease does the rest."""
        for snapshots in self._all[:1]:
            for key in self._open_keys:
                try:
                    await snapshots.remove(key)
                except SnapshotterError:
                    continue

    async def _has(self, snapshots: Snapshots, name: str) -> bool:
        try:
            return await snapshots.committed(name) is not None
        except ContainerdError:
            if snapshots is self._all[0]:
                raise
            return False  # one of those that nobody named does not answer

    async def _first_missing(self, snapshots: Snapshots, chain: Sequence[str]) -> int:
        for number in range(len(chain) - 2, -1, -1):
            if await snapshots.committed(chain[number]) is not None:
                return number + 1
        return 0

    async def _fetch_all(
        self,
        layers: Sequence[Descriptor],
        first: int,
        blobs: KeptBlobs,
        watcher: Watcher,
        have: Sequence[trio.Event],
    ) -> None:
        slots = trio.CapacityLimiter(_SIDE_BY_SIDE)

        async def fetch(number: int) -> None:
            async with slots:
                await self._fetch(layers[number], blobs, watcher, number)
            have[number].set()

        async with trio.open_nursery() as nursery:
            for number in range(first, len(layers)):
                nursery.start_soon(fetch, number)

    async def _fetch(self, layer: Descriptor, blobs: KeptBlobs, watcher: Watcher, number: int) -> None:
        """Have a layer's blob in the content store."""

        @asynccontextmanager
        async def content(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            with watcher.working(f"fetch layer {number + 1}", layer.size) as advance:
                path = await blobs.blob_file(layer, None, advance)
            with disk_errors(path), path.open("rb") as file:
                file.seek(start)
                yield _pieces(file)

        await ingest.put(self._client, f"layer-{layer.digest}", layer.digest, layer.size, content, unheard)

    async def _unpack(self, snapshots: Snapshots, image: Image, number: int, chain: Sequence[str]) -> None:
        layer, diff_id, chain_id = image.manifest.layers[number], image.config.diff_ids[number], chain[number]
        below = chain[number - 1] if number else ""
        labels = {SNAPSHOT_REF: chain_id}
        for _ in range(_TRIES):
            key = extraction_key(chain_id)
            self._open_keys.add(key)
            try:
                mounts = await snapshots.prepare(key, below, labels)
            except AlreadyExists:
                self._open_keys.discard(key)
                if await snapshots.committed(chain_id) is not None:
                    return
                continue  # collected in between
            active = Active(key, mounts, labels)
            await unpack_layer(self._client, snapshots, layer, diff_id, chain_id, active, image.name)
            self._open_keys.discard(key)
            return
        raise ContainerdError(
            f"layer {layer.digest}: the snapshotter {snapshots.name} says that {chain_id} is there, and containerd does "
            "not find it; remove the image, and try again"
        )


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await trio.to_thread.run_sync(file.read, ingest.GATHER):
        yield piece
