"""One image in containerd's store, as a place to convert to: a lease keeps what is written until its name, the last thing, does."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import trio

from snapshotter.api.descriptor_pb2 import Descriptor as ContainerdDescriptor
from snapshotter.containerd import blobs, images, ingest, leases
from snapshotter.containerd.client import Client
from snapshotter.errors import IntegrityError, SnapshotterError
from snapshotter.image.documents import CONFIGS
from snapshotter.image.labels import children_labels
from snapshotter.image.places.disk import PIECE, disk_errors, open_file
from snapshotter.image.places.ends import OnProgress, unheard
from snapshotter.image.places.location import ContainerdLocation
from snapshotter.registry.manifest import DOCKER_LIST, OCI_INDEX, Descriptor, parse_manifest


class ContainerdTarget:
    """A Target by way of containerd's services. The client's lease must be there."""

    def __init__(self, client: Client, location: ContainerdLocation) -> None:
        self._client = client
        self._location = location
        self._named: list[str] = []

    async def adopt(self, descriptor: Descriptor) -> bool:
        """Whether containerd has the blob, which the lease then keeps."""
        if await blobs.size_of(self._client, descriptor.digest) is None:
            return False
        await leases.hold_content(self._client, descriptor.digest)
        # Again: it may have been collected before it was held.
        return await blobs.size_of(self._client, descriptor.digest) is not None

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Write a blob unless it is there. containerd checks its digest."""
        kind = "config" if descriptor.media_type in CONFIGS else "layer"
        return await self._put(kind, descriptor, content, on_progress)

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Write a manifest or index, with labels by which it keeps what it names."""
        labels = children_labels(parse_manifest(raw, descriptor.media_type))
        kind = "index" if descriptor.media_type in (OCI_INDEX, DOCKER_LIST) else "manifest"
        await self._put(kind, descriptor, raw, unheard)
        await ingest.set_labels(self._client, descriptor.digest, labels)

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Write the manifest or index, then the image's record; one that has the name is changed."""
        name = await self._name(suffix)
        await self.put_manifest(raw, descriptor)
        target = ContainerdDescriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
        # Broken off in the middle, nobody could say whether the name is there. Its calls have deadlines of their own.
        with trio.CancelScope(shield=True):
            if await images.name(self._client, name, target, {}):
                self._named.append(name)

    async def undo(self) -> None:
        """Delete the records that were made; what cannot be stays."""
        for name in self._named:
            with suppress(SnapshotterError):
                await images.forget(self._client, name)

    async def _name(self, suffix: str) -> str:
        """The record of exactly this name if there is one, else the name as references are written out."""
        named = self._location.suffixed(suffix)
        reference = named.reference
        if reference is None or await images.get(self._client, named.name) is not None:
            return named.name
        return str(reference)

    async def _put(self, kind: str, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress) -> bool:
        digest, size = descriptor.digest, descriptor.size

        @asynccontextmanager
        async def rest(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
            if isinstance(content, bytes):
                async with aclosing(_once(content[start:])) as pieces:
                    yield pieces
                return
            with open_file(content) as file:
                async with aclosing(_rest_of(content, file, start)) as pieces:
                    yield pieces

        try:
            return await ingest.put(self._client, f"{kind}-{digest}", digest, size, rest, on_progress)
        except IntegrityError as error:
            raise IntegrityError(f"containerd at {self._client.address} does not take {digest}: {error}") from error


@asynccontextmanager
async def containerd_target(
    client: Client, location: ContainerdLocation, note: Callable[[str], None]
) -> AsyncIterator[ContainerdTarget]:
    """A target under a lease, which ends with the block; one that ends badly leaves no record that was not there."""
    target = ContainerdTarget(client, location)
    try:
        await leases.create(client)
        yield target
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
            await target.undo()
            await _end_lease(client, note, sync=True)
        raise
    with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
        await _end_lease(client, note, sync=False)


async def _end_lease(client: Client, note: Callable[[str], None], *, sync: bool) -> None:
    if complaint := await leases.end(client, sync=sync):
        note(complaint)


async def _rest_of(path: Path, file: BinaryIO, start: int) -> AsyncGenerator[bytes, None]:
    with disk_errors(path):
        file.seek(start)
        while piece := await trio.to_thread.run_sync(file.read, PIECE):
            yield piece


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
