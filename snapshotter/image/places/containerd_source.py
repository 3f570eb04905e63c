"""One image in containerd's store, as a place to convert from.

A lazily pulled image has layers that were never fetched, and containerd or a snapshotter may have discarded those that were
unpacked: what is missing comes from a registry that is known to have it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from snapshotter.containerd import blobs, images, ingest
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client
from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound, RegistryError
from snapshotter.image.labels import sources_in
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import OnProgress, checked_document
from snapshotter.image.places.location import ContainerdLocation, RegistryLocation
from snapshotter.image.places.registry_image import RegistryImage
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import ACCEPTED, Descriptor, Manifest
from snapshotter.registry.reference import Reference, checked_digest

_T = TypeVar("_T")


@contextmanager
def reaching(address: Path, namespace: str, lease: str = "") -> Iterator[Client]:
    """A client of the containerd at `address`. Raises ContainerdUnreachable."""
    with connected(address) as channel:
        yield Client(channel, address, namespace, lease)


class ContainerdSource:
    """A Source by way of containerd's content service, and of a registry client for what is not there."""

    def __init__(self, client: Client, location: ContainerdLocation, registry: Registry) -> None:
        self._client = client
        self._location = location
        self._registry = registry
        self._top: Descriptor | None = None
        self._places: list[RegistryImage] | None = None

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """Return a manifest, checked against its digest.

        Raises:
            NotFound: no record of this name.
            BlobMissing: neither containerd nor a registry has it.
        """
        descriptor = descriptor or await self._record()
        return Manifest(await self.document(descriptor), descriptor.media_type, descriptor.digest)

    async def document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, checked against its digest."""
        if await self._is_here(descriptor):
            return await checked_document(self, descriptor, f"containerd at {self._client.address}")

        async def fetch(place: RegistryImage) -> bytes:
            if descriptor.media_type in ACCEPTED:
                return (await place.manifest(descriptor)).raw
            return await place.document(descriptor)

        return await self._from_registry(descriptor, fetch)

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        """Copy a blob into `scratch` and check it against its digest."""
        if not await self._is_here(descriptor):
            return await self._from_registry(
                descriptor, lambda place: place.blob_file(descriptor, scratch, on_progress)
            )
        path = scratch / descriptor.digest.removeprefix("sha256:")
        whole = hashlib.sha256()
        with disk_errors(path), path.open("wb") as out:

            def keep(piece: bytes) -> None:
                whole.update(piece)
                out.write(piece)

            async with blobs.open_range(self._client, descriptor.digest, 0, descriptor.size) as pieces:
                async for piece in pieces:
                    await trio.to_thread.run_sync(keep, piece)
                    on_progress(len(piece))
        if f"sha256:{whole.hexdigest()}" != descriptor.digest:
            path.unlink()
            raise IntegrityError(
                f"containerd at {self._client.address} holds other bytes for {descriptor.digest} than that digest names: "
                "its disk may fail; remove the image and pull it again"
            )
        return path

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """Return a part of a blob, unchecked."""
        if not await self._is_here(descriptor):
            return await self._from_registry(descriptor, lambda place: place.read_range(descriptor, start, size))
        async with blobs.open_range(self._client, descriptor.digest, start, size) as pieces:
            return b"".join([piece async for piece in pieces])

    async def repositories(self, descriptor: Descriptor) -> Sequence[Reference]:
        """The repositories from which the blob, or else the image, came."""
        here = await self._labels(descriptor.digest)
        return sources_in(here, self._location.reference) or await self._labelled()

    async def _record(self) -> Descriptor:
        """What the record means that is called so; its name may leave out what references may."""
        reference = self._location.reference
        for name in dict.fromkeys((self._location.name, str(reference or self._location.name))):
            record = await images.get(self._client, name)
            if record is not None:
                target = record.target
                self._top = Descriptor(target.media_type, checked_digest(target.digest), target.size)
                return self._top
        raise NotFound(
            f"containerd at {self._client.address} has no image {self._location.name} in the namespace "
            f"{self._client.namespace}; `ctr -n {self._client.namespace} images ls` shows what there is"
        )

    async def _is_here(self, descriptor: Descriptor) -> bool:
        return await blobs.size_of(self._client, descriptor.digest) is not None

    async def _labels(self, digest: str) -> dict[str, str]:
        try:
            return await ingest.labels_of(self._client, digest)
        except NotFound:
            return {}

    async def _labelled(self) -> list[Reference]:
        """The repositories from which the image came, as far as containerd knows."""
        top = self._top or await self._record()
        return sources_in(await self._labels(top.digest), self._location.reference)

    async def _from_registry(self, descriptor: Descriptor, ask: Callable[[RegistryImage], Awaitable[_T]]) -> _T:
        """What the first registry has that has it: those of the labels, then the one that the name means."""
        if self._places is None:
            near = self._location.reference
            known = [*await self._labelled(), *([Reference(near.host, near.repository)] if near else [])]
            self._places = [RegistryImage(self._registry, RegistryLocation(one)) for one in dict.fromkeys(known)]
        lacking = f"containerd at {self._client.address} lacks {descriptor.digest} of {self._location.name}"
        fault: RegistryError | FormatError | None = None
        for place in self._places:
            try:
                return await ask(place)
            except (RegistryError, FormatError) as error:
                fault = fault or error
        if fault is None:
            raise BlobMissing(f"{lacking}, and nothing says which registry has it; pull the image again, whole")
        raise type(fault)(f"{lacking} (it was pulled lazily, or discarded), and: {fault}") from fault
