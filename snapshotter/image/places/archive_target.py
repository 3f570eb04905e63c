"""An archive as a place to convert to: one tar that is an OCI layout, and says what docker wants to know, too.

docker, podman and skopeo read the one, containerd and again skopeo the other; layers stay compressed for all of them. The
archive is written beside its name and takes it at the end.
"""

import os
import platform
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import trio

from snapshotter.errors import ConfigError, FormatError
from snapshotter.image.documents import CONFIGS
from snapshotter.image.places import docker_manifest, layout_index
from snapshotter.image.places.disk import copy_exactly, disk_errors, new_beside
from snapshotter.image.places.ends import OnProgress, unheard
from snapshotter.image.places.location import DockerArchiveLocation, OciArchiveLocation
from snapshotter.registry.manifest import Descriptor, ImageIndex, ImageManifest, choose_platform, parse_manifest
from snapshotter.registry.platform import host_platform

_DIRECTORIES = ("blobs/", "blobs/sha256/")
_END = bytes(2 * tarfile.BLOCKSIZE)


class ArchiveTarget:
    """A Target. What is put goes into the file one after the other, in threads."""

    def __init__(self, location: OciArchiveLocation | DockerArchiveLocation, out: BinaryIO) -> None:
        self._location = location
        self._out = out
        self._turn = trio.Lock()  # guards the end of the file
        self._stored: set[str] = set()
        self._documents: dict[str, ImageIndex | ImageManifest] = {}
        self._entries: list[layout_index.Entry] = []
        self._saved: list[docker_manifest.SavedImage] = []

    @property
    def is_named(self) -> bool:
        """Whether there is an image in it."""
        return bool(self._entries)

    async def adopt(self, descriptor: Descriptor) -> bool:
        """Whether the new archive has the blob already."""
        return descriptor.digest in self._stored

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Append a blob."""
        async with self._turn:
            if descriptor.digest in self._stored:
                return False
            name = layout_index.blob_name(descriptor.digest)
            await trio.to_thread.run_sync(self._append, name, descriptor.size, content, on_progress)
            self._stored.add(descriptor.digest)
        return True

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Append a manifest, and remember it for docker."""
        self._documents[descriptor.digest] = parse_manifest(raw, descriptor.media_type)
        await self.put_blob(descriptor, raw)

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Append the manifest or index; the archive has its name when the places are closed."""
        named = self._location.suffixed(suffix)
        await self.put_manifest(raw, descriptor)
        self._entries.append(layout_index.entry_of(descriptor, _annotations(named)))
        # The second image is no container's: it has tables of contents for layers.
        if isinstance(named, DockerArchiveLocation) and not suffix:
            self._saved += self._for_docker(descriptor, named)

    def begin(self) -> None:
        """Write the directories, which some tools want to see before what lies in them."""
        for name in _DIRECTORIES:
            self._out.write(_header(name, 0, tarfile.DIRTYPE))

    def finish(self) -> None:
        """Write what says which images these are."""
        self._append(layout_index.MARK, len(layout_index.MARK_TEXT), layout_index.MARK_TEXT, unheard)
        index = layout_index.index_json(self._entries)
        self._append(layout_index.INDEX, len(index), index, unheard)
        if isinstance(self._location, DockerArchiveLocation):
            saved = docker_manifest.saved_json(self._saved)
            self._append(docker_manifest.NAME, len(saved), saved, unheard)
        self._out.write(_END)

    def _append(self, name: str, size: int, content: Path | bytes, on_progress: OnProgress) -> None:
        start = self._out.tell()
        try:
            with disk_errors(self._location.path):
                self._out.write(_header(name, size, tarfile.REGTYPE))
                copy_exactly(content, size, self._out.write, on_progress)
                self._out.write(bytes(-size % tarfile.BLOCKSIZE))
        except BaseException:
            with suppress(OSError):
                self._out.seek(start)
                self._out.truncate()
            raise

    def _for_docker(self, top: Descriptor, named: DockerArchiveLocation) -> list[docker_manifest.SavedImage]:
        """What manifest.json says of an image: of an index, the one for this host. Readers want exactly one."""
        names = (docker_manifest.familiar(named.tag),) if named.tag is not None else ()
        for manifest in self._manifests(top):
            if manifest.config.media_type in CONFIGS:
                layers = tuple(layout_index.blob_name(layer.digest) for layer in manifest.layers)
                return [docker_manifest.SavedImage(layout_index.blob_name(manifest.config.digest), layers, names)]
        return []

    def _manifests(self, top: Descriptor) -> list[ImageManifest]:
        document = self._documents[top.digest]
        if isinstance(document, ImageManifest):
            return [document]
        children = list(document.manifests)
        with suppress(FormatError):  # none is for this host, and the first one has the name
            here = choose_platform(document, host_platform(platform.machine()))
            children.sort(key=lambda child: child.digest != here.digest)
        found = (self._documents.get(child.digest) for child in children)
        return [one for one in found if isinstance(one, ImageManifest)]


@asynccontextmanager
async def writing_archive(location: OciArchiveLocation | DockerArchiveLocation) -> AsyncIterator[ArchiveTarget]:
    """A new archive. It replaces what has its name when the block ends well, and is gone when it does not.

    Raises:
        ConfigError: its name is that of something else than a file.
        NotFound, StoreError: the directory cannot be written to.
    """
    path = location.path
    with disk_errors(path):
        if path.exists() and not path.is_file():
            raise ConfigError(f"{location}: {path} is no file that could be replaced")
    with disk_errors(path.parent):
        out = new_beside(path)
    try:
        target = ArchiveTarget(location, out)  # type: ignore[arg-type]
        target.begin()
        yield target
        if target.is_named:
            await trio.to_thread.run_sync(_conclude, target, out, path)
    finally:
        with suppress(OSError):  # of a full disk, which has been told
            out.close()
        with suppress(FileNotFoundError):
            os.unlink(out.name)


def _conclude(target: ArchiveTarget, out: "tempfile._TemporaryFileWrapper[bytes]", path: Path) -> None:
    with disk_errors(path):
        target.finish()
        out.flush()
        os.fchmod(out.fileno(), 0o644)
        os.fsync(out.fileno())
        os.replace(out.name, path)


def _annotations(named: OciArchiveLocation | DockerArchiveLocation) -> dict[str, str]:
    if named.tag is None:
        return {}
    if isinstance(named, OciArchiveLocation):
        return {layout_index.NAME: named.tag}
    return {layout_index.FULL_NAME: str(named.tag), layout_index.NAME: named.tag.tag or "latest"}


def _header(name: str, size: int, kind: bytes) -> bytes:
    """A tar header that is the same for the same image; 8 GiB and more are said in PAX's way."""
    header = tarfile.TarInfo(name)
    header.size, header.type = size, kind
    header.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return header.tobuf(tarfile.PAX_FORMAT)
