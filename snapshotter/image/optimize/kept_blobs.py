"""A source whose blobs cross the wire once, though containerd unpacks them first and the conversion reads them again.

And whose name means the same image both times: a tag may be pushed anew while a container of it runs.
"""

from pathlib import Path

import trio

from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import OnProgress, Source, unheard
from snapshotter.registry.manifest import Descriptor, Manifest


class KeptBlobs:
    """A Source that keeps the files of another one, by digest, in a directory of its own."""

    def __init__(self, source: Source, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self._top: Manifest | None = None
        self._files: dict[str, Path] = {}
        self._locks: dict[str, trio.Lock] = {}  # each guards that a blob is fetched once

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """What the source has; what it named first stays."""
        if descriptor is not None:
            return await self._source.manifest(descriptor)
        if self._top is None:
            self._top = await self._source.manifest(None)
        return self._top

    async def document(self, descriptor: Descriptor) -> bytes:
        """What the source has."""
        return await self._source.document(descriptor)

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """What the source has."""
        return await self._source.read_range(descriptor, start, size)

    async def blob_file(
        self, descriptor: Descriptor, scratch: Path | None = None, on_progress: OnProgress = unheard
    ) -> Path:
        """The file that is kept, if there is one; without `scratch` what is fetched is kept from now on."""
        async with self._locks.setdefault(descriptor.digest, trio.Lock()):
            path = self._files.get(descriptor.digest)
            if path is not None:
                on_progress(descriptor.size)
                return path
            place = scratch
            if place is None:
                place = self._directory / descriptor.digest.removeprefix("sha256:")
                with disk_errors(place):
                    place.mkdir(exist_ok=True)
            path = await self._source.blob_file(descriptor, place, on_progress)
            if path.parent != scratch:
                self._files[descriptor.digest] = path
            return path
