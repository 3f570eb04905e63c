"""One image in a registry, as a place to convert from or to."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

import trio

from snapshotter.errors import FormatError, IntegrityError, RegistryError, RegistryUnreachable
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import DOCUMENT_MAX, OnProgress, unheard
from snapshotter.image.places.location import RegistryLocation
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import Descriptor, ImageManifest, Manifest, parse_manifest
from snapshotter.registry.reference import Reference, canonical_host

log = logging.getLogger(__name__)

Repositories = Callable[[Descriptor], Awaitable[Sequence[Reference]]]
"""The repositories that are known to have a blob."""


NAMING_S = 120.0
"""How long a registry may take for a manifest, all tries together; a signal is heeded afterwards."""


class RegistryImage:
    """Source and Target by way of a registry client, which retries and resumes by itself."""

    def __init__(self, registry: Registry, location: RegistryLocation, elsewhere: Repositories | None = None) -> None:
        """`elsewhere` says from where a blob may be mounted."""
        self._registry = registry
        self._location = location
        self._reference = location.reference
        self._elsewhere = elsewhere
        self._named: set[str] = set()
        """Blobs of the manifests that were read: this repository has them."""
        self._refused: set[str] = set()
        """Blobs that could not be had without being sent."""

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """Return a manifest, checked against its digest."""
        found = await self._registry.manifest(self._reference, descriptor.digest if descriptor else None)
        document = parse_manifest(found.raw, found.media_type)
        if isinstance(document, ImageManifest):
            self._named.update((document.config.digest, *(layer.digest for layer in document.layers)))
        return found

    async def document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, checked against its digest."""
        if descriptor.size > DOCUMENT_MAX:
            raise FormatError(f"{descriptor.digest} has {descriptor.size} bytes; the limit is 8 MiB")
        return await self._registry.blob(self._reference, descriptor.digest, descriptor.size).read_whole(DOCUMENT_MAX)

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        """Fetch a blob into `scratch` and check it against its digest."""
        path = scratch / descriptor.digest.removeprefix("sha256:")
        whole = hashlib.sha256()
        blob = self._registry.blob(self._reference, descriptor.digest, descriptor.size)
        with disk_errors(path), path.open("wb") as out:

            def keep(piece: bytes) -> None:
                whole.update(piece)
                out.write(piece)

            if descriptor.size:
                async with blob.open_range(0, descriptor.size) as pieces:
                    async for piece in pieces:
                        await trio.to_thread.run_sync(keep, piece)
                        on_progress(len(piece))
        if f"sha256:{whole.hexdigest()}" != descriptor.digest:
            path.unlink()
            raise IntegrityError(f"{self._reference}: the registry sent other bytes for {descriptor.digest}; try again")
        return path

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """Fetch a part of a blob, unchecked."""
        blob = self._registry.blob(self._reference, descriptor.digest, descriptor.size)
        return await blob.read_range(start, size) if size else b""

    async def repositories(self, descriptor: Descriptor) -> Sequence[Reference]:
        """This repository, for blobs of the images that were read."""
        return [self._reference] if descriptor.digest in self._named else []

    async def adopt(self, descriptor: Descriptor) -> bool:
        """Whether the repository has the blob, or has got it from one that the source knows at the same registry."""
        if await self._registry.blob_exists(self._reference, descriptor.digest):
            return True
        for repository in await self._neighbours(descriptor):
            try:
                if await self._registry.mount_blob(self._reference, descriptor.digest, repository):
                    return True
            except RegistryError as error:
                # Who may write here need not be allowed to read there, and not every registry knows mounts.
                log.debug("%s is not mounted from %s: %s", descriptor.digest, repository, error)
        self._refused.add(descriptor.digest)
        return False

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Push a blob unless the registry has it. What breaks off is sent again from its start; what was pushed is not."""
        untried = descriptor.digest not in self._refused
        if untried and await self._neighbours(descriptor) and await self.adopt(descriptor):
            return False
        source = content if isinstance(content, Path) else _once_more(content)
        return await self._registry.push_blob(self._reference, descriptor.digest, descriptor.size, source, on_progress)

    async def _neighbours(self, descriptor: Descriptor) -> list[str]:
        """Other repositories of this registry that are known to have a blob."""
        found = await self._elsewhere(descriptor) if self._elsewhere else ()
        host, own = canonical_host(self._reference.host), self._reference.repository
        return [one.repository for one in found if canonical_host(one.host) == host and one.repository != own]

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Push a manifest by its digest."""
        reference = Reference(self._reference.host, self._reference.repository, None, descriptor.digest)
        await self._registry.push_manifest(reference, raw, descriptor.media_type)

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Push a manifest or index by the reference's tag.

        Raises:
            RegistryUnreachable: it did not say in time whether it has it.
        """
        named = self._location.suffixed(suffix).reference
        # Given up in the middle, nobody could say what the name means.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + NAMING_S):
            await self._registry.push_manifest(named, raw, descriptor.media_type)
            return
        raise RegistryUnreachable(
            f"{named}: the registry did not say within {NAMING_S:.0f} s whether it has the new manifest; what is behind the "
            "name now is either; do it again, everything else is there"
        )


def _once_more(content: bytes) -> Callable[[], AsyncGenerator[bytes, None]]:
    """`content` as a body that can be begun again."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield content

    return pieces
