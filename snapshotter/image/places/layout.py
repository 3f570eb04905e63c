"""OCI image layouts: a directory with an index and content-addressed blobs.

Source: OCI Image Specification 1.1, image-layout.md; names of images as skopeo reads and writes them.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound
from snapshotter.image.places import layout_index
from snapshotter.image.places.disk import copy_exactly, digest_of, disk_errors, opened, replacing
from snapshotter.image.places.ends import DOCUMENT_MAX, OnProgress, checked_document, unheard
from snapshotter.image.places.location import LayoutLocation
from snapshotter.registry.manifest import Descriptor, Manifest


class OciLayout:
    """One image in a layout; a Source if it is there, a Target in any case. All work is done in threads."""

    def __init__(self, location: LayoutLocation) -> None:
        self._location = location
        self._path = location.path

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """Return a manifest, checked against its digest.

        Raises:
            NotFound: no layout there, or no image of that name in it.
            FormatError: a layout, but a broken one.
        """
        if descriptor is None:
            descriptor = await trio.to_thread.run_sync(self._named)
        return Manifest(await self.document(descriptor), descriptor.media_type, descriptor.digest)

    async def document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, checked against its digest."""
        return await checked_document(self, descriptor, str(self._path))

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:  # noqa: ARG002
        """Return the layout's own file, checked against its digest; `scratch` is not needed."""
        return await trio.to_thread.run_sync(self._verified, descriptor, on_progress)

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """Return a part of a blob, unchecked.

        Raises:
            BlobMissing: the layout has no such blob.
            FormatError: the blob ends before the part does.
        """
        return await trio.to_thread.run_sync(self._part, descriptor, start, size)

    async def adopt(self, descriptor: Descriptor) -> bool:
        """Whether the layout has the blob, undamaged."""
        return await trio.to_thread.run_sync(self._has, descriptor)

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Store a blob by copying it; complete under its name or not there at all."""
        return await trio.to_thread.run_sync(self._store, descriptor, content, on_progress)

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store a manifest as the blob that it is."""
        await self.put_blob(descriptor, raw)

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Store the manifest, then replace the index; another image of the same name loses it."""
        named = self._location.suffixed(suffix)
        await self.put_blob(descriptor, raw)
        await trio.to_thread.run_sync(self._enter, descriptor, named.tag)

    def _blob(self, digest: str) -> Path:
        return self._path / layout_index.blob_name(digest)

    def _named(self) -> Descriptor:
        """The index entry that the location means."""
        try:
            entries = self._entries()
        except NotFound:
            raise NotFound(f"{self._path} is no OCI layout: it has no {layout_index.INDEX}") from None
        return layout_index.choose(entries, self._location.tag, str(self._path))

    def _entries(self) -> list[layout_index.Entry]:
        with opened(self._path / layout_index.INDEX) as file:
            raw = file.read(DOCUMENT_MAX + 1)
        if len(raw) > DOCUMENT_MAX:
            raise FormatError(f"{self._path / layout_index.INDEX} is larger than 8 MiB")
        return layout_index.parse_entries(raw, str(self._path))

    def _has(self, descriptor: Descriptor) -> bool:
        """A file with the blob's name may be damaged, and the image to be written is not to be."""
        try:
            with opened(self._blob(descriptor.digest)) as blob:
                return digest_of(blob, unheard) == (descriptor.digest, descriptor.size)
        except NotFound:
            return False

    def _part(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        path = self._blob(descriptor.digest)
        try:
            with opened(path) as blob:
                blob.seek(start)
                part = blob.read(size)
        except NotFound:
            raise self._missing(descriptor) from None
        if len(part) != size:
            raise FormatError(f"{path} ends before byte {start + size}; copy the image there again")
        return part

    def _missing(self, descriptor: Descriptor) -> BlobMissing:
        return BlobMissing(f"{self._path} lacks the blob {descriptor.digest} that its image needs")

    def _verified(self, descriptor: Descriptor, on_progress: OnProgress) -> Path:
        path = self._blob(descriptor.digest)
        try:
            with opened(path) as blob:
                found = digest_of(blob, on_progress)
        except NotFound:
            raise self._missing(descriptor) from None
        if found != (descriptor.digest, descriptor.size):
            raise IntegrityError(f"{path} does not have the digest that its name says; copy the image there again")
        return path

    def _store(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress) -> bool:
        if self._has(descriptor):
            return False
        path = self._blob(descriptor.digest)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as out:
                copy_exactly(content, descriptor.size, out.write, on_progress)
        return True

    def _enter(self, descriptor: Descriptor, name: str | None) -> None:
        """Write the index last and whole, other images kept, under a lock that other conversions take, too."""
        with disk_errors(self._path), _locked(self._path):
            try:
                entries = self._entries()
            except NotFound:
                entries = []
            others = [entry for entry in entries if not _is_called(entry, name)]
            entry = layout_index.entry_of(descriptor, {layout_index.NAME: name} if name is not None else {})
            with replacing(self._path / layout_index.MARK) as out:
                out.write(layout_index.MARK_TEXT)
            with replacing(self._path / layout_index.INDEX) as out:
                out.write(layout_index.index_json([*others, entry]))


def _is_called(entry: layout_index.Entry, name: str | None) -> bool:
    names = layout_index.names_of(entry)
    return not names if name is None else name in names


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the layout: guards its index between reading and replacing it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
