"""Blobs of layers that are not lazy: from the registry into containerd's content store, several side by side."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import trio

from snapshotter.containerd import ingest
from snapshotter.containerd.client import Client
from snapshotter.errors import IntegrityError, SnapshotterError
from snapshotter.image.labels import source_label
from snapshotter.image.pull.rows import LayerRow, LayerState
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import Descriptor
from snapshotter.registry.reference import Reference

SIDE_BY_SIDE = 3
"""Blobs that are fetched at once; one connection seldom fills a line, and containerd's own pulls take three."""


class _Job:
    """One blob on its way; `failure` is what it ended with."""

    def __init__(self, layer: Descriptor, row: LayerRow) -> None:
        self.layer, self.row = layer, row
        self.begun = False
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.failure: SnapshotterError | None = None


class Blobs:
    """Fetches each blob once: those that are waited for at once, others ahead in the order in which they were told."""

    def __init__(self, nursery: trio.Nursery, registry: Registry, reference: Reference, client: Client) -> None:
        """The tasks run in `nursery`; a blob's fault is raised where it is waited for."""
        self._nursery = nursery
        self._registry = registry
        self._reference = reference
        self._client = client
        self._jobs: dict[str, _Job] = {}
        self._running = 0

    def begin(self, layer: Descriptor, row: LayerRow) -> None:
        """Have the blob fetched ahead, in its turn."""
        if layer.digest not in self._jobs:
            self._jobs[layer.digest] = _Job(layer, row)
            self._start_some()

    def drop(self, layer: Descriptor) -> None:
        """Give a blob up that turns out not to be needed."""
        job = self._jobs.pop(layer.digest, None)
        if job is not None:
            job.scope.cancel()

    async def have(self, layer: Descriptor, row: LayerRow) -> None:
        """Return when containerd has the blob, verified; it waits for none that is only fetched ahead.

        Raises:
            RegistryError: and its subclasses.
            IntegrityError: the registry sends other bytes than the digest names.
            ContainerdError: containerd does not take it.
        """
        self.begin(layer, row)
        job = self._jobs[layer.digest]
        self._start(job)
        await job.ended.wait()
        if job.failure is not None:
            raise job.failure

    def _start_some(self) -> None:
        for job in self._jobs.values():
            if self._running >= SIDE_BY_SIDE:
                return
            self._start(job)

    def _start(self, job: _Job) -> None:
        if not job.begun:
            job.begun = True
            self._running += 1
            self._nursery.start_soon(self._run, job)

    async def _run(self, job: _Job) -> None:
        row = job.row
        with job.scope:
            try:
                row.began_s = time.monotonic() if row.began_s is None else row.began_s
                row.state = LayerState.DOWNLOADING
                await self._fetch(job.layer, row)
                if row.state is LayerState.DOWNLOADING:  # else it was dropped in the last moment
                    row.state, row.received = LayerState.DOWNLOADED, row.size
            except SnapshotterError as error:
                job.failure = error
        self._running -= 1
        job.ended.set()
        self._start_some()

    async def _fetch(self, layer: Descriptor, row: LayerRow) -> None:
        row.received = 0

        def told(size: int) -> None:
            row.received += size

        @asynccontextmanager
        async def content(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            blob = self._registry.blob(self._reference, layer.digest, layer.size)
            async with (
                blob.open_range(start, layer.size - start) as pieces,
                aclosing(_counted(pieces, row)) as counted,
            ):
                yield counted

        try:
            await ingest.put(self._client, f"layer-{layer.digest}", layer.digest, layer.size, content, told)
        except IntegrityError:
            raise IntegrityError(
                f"{self._reference}: the registry sends other bytes for layer {layer.digest} than that digest names; "
                "its copy is damaged, or something between it and this node changes what passes"
            ) from None
        present = await ingest.labels_of(self._client, layer.digest)
        if labels := source_label(self._reference, present):
            await ingest.set_labels(self._client, layer.digest, labels)


async def _counted(pieces: AsyncIterator[bytes], row: LayerRow) -> AsyncGenerator[bytes, None]:
    async for piece in pieces:
        row.fetched += len(piece)
        yield piece
