"""OCI image layouts: a directory with an index and content-addressed blobs.

Source: OCI Image Specification 1.1, image-layout.md; names of images as skopeo reads and writes them.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import trio

from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound
from snapshotter.image.documents import descriptor_json
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import DOCUMENT_MAX, OnProgress, unheard
from snapshotter.image.places.location import LayoutLocation, with_suffix
from snapshotter.registry.manifest import OCI_INDEX, Descriptor, ImageIndex, Manifest, parse_manifest

_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_PIECE = 1 << 20


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
        if descriptor.size > DOCUMENT_MAX:
            raise FormatError(f"{descriptor.digest} in {self._path} has {descriptor.size} bytes; the limit is 8 MiB")
        path = await trio.to_thread.run_sync(self._verified, descriptor, unheard)
        return await trio.to_thread.run_sync(path.read_bytes)

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
        """Whether the layout has the blob."""
        return await trio.to_thread.run_sync(self._has, descriptor)

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Store a blob by copying it; complete under its name or not there at all."""
        return await trio.to_thread.run_sync(self._store, descriptor, content, on_progress)

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store a manifest as the blob that it is."""
        await self.put_blob(descriptor, raw)

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Store the manifest, then replace the index; another image of the same name loses it."""
        named = with_suffix(self._location, suffix)
        await self.put_blob(descriptor, raw)
        await trio.to_thread.run_sync(self._enter, descriptor, named.tag if isinstance(named, LayoutLocation) else None)

    def _blob(self, digest: str) -> Path:
        return self._path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _named(self) -> Descriptor:
        """The index entry that the location means."""
        entries = self._entries(must_exist=True)
        tag = self._location.tag
        found = [entry for entry in entries if tag is None or _name_of(entry) == tag]
        if len(found) != 1:
            names = ", ".join(sorted({_name_of(entry) or "(unnamed)" for entry in entries})[:20]) or "none"
            wanted = f"one image named {tag!r}" if tag else "exactly one image; append :TAG"
            raise NotFound(f"{self._path}: expected {wanted}; the layout has: {names}")
        # The entry has a descriptor's form; as the only one of an index our parser checks it.
        index = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": found}).encode(), OCI_INDEX)
        if not isinstance(index, ImageIndex):
            raise FormatError(f"{self._path}/index.json is not the index of an OCI layout")
        return index.manifests[0]

    def _entries(self, *, must_exist: bool) -> list[dict[str, Any]]:
        path = self._path / "index.json"
        try:
            with disk_errors(path):
                document = json.loads(path.read_bytes())
        except NotFound:
            if must_exist:
                raise NotFound(f"{self._path} is no OCI layout: it has no index.json") from None
            return []
        except (ValueError, RecursionError) as fault:
            raise FormatError(f"{path} is not JSON: {fault}") from None
        entries = document.get("manifests") if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FormatError(f"{path} is not the index of an OCI layout")
        return entries

    def _has(self, descriptor: Descriptor) -> bool:
        path = self._blob(descriptor.digest)
        with disk_errors(path):
            return path.exists() and path.stat().st_size == descriptor.size

    def _part(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        path = self._blob(descriptor.digest)
        try:
            with disk_errors(path), path.open("rb") as blob:
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
        whole, size = hashlib.sha256(), 0
        try:
            with disk_errors(path), path.open("rb") as blob:
                while piece := blob.read(_PIECE):
                    whole.update(piece)
                    size += len(piece)
                    on_progress(len(piece))
        except NotFound:
            raise self._missing(descriptor) from None
        if size != descriptor.size or f"sha256:{whole.hexdigest()}" != descriptor.digest:
            raise IntegrityError(f"{path} does not have the digest that its name says; copy the image there again")
        return path

    def _store(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress) -> bool:
        path = self._blob(descriptor.digest)
        if self._has(descriptor):
            return False
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(path) as out:
                if isinstance(content, bytes):
                    out.write(content)
                    on_progress(len(content))
                else:
                    with content.open("rb") as source:
                        while piece := source.read(_PIECE):
                            out.write(piece)
                            on_progress(len(piece))
        return True

    def _enter(self, descriptor: Descriptor, name: str | None) -> None:
        """Write index.json last and whole, other images kept, under a lock that other conversions take, too."""
        path = self._path / "index.json"
        with disk_errors(path), _locked(self._path):
            others = [entry for entry in self._entries(must_exist=False) if _name_of(entry) != name]
            entry = descriptor_json(descriptor)
            if name is not None:
                entry["annotations"] = {**entry.get("annotations", {}), _NAME: name}
            with _replacing(self._path / "oci-layout") as out:
                out.write(_LAYOUT)
            with _replacing(path) as out:
                out.write(json.dumps({"schemaVersion": 2, "manifests": [*others, entry]}).encode("ascii"))


def _name_of(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get(_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, and is gone when it does not."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as out:
        try:
            yield out  # type: ignore[misc]
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
            os.replace(out.name, path)
        except BaseException:
            os.unlink(out.name)
            raise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the layout: guards index.json between reading and replacing it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
