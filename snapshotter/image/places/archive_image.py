"""One image in an archive, OCI's or docker's, as a place to convert from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import trio

from snapshotter.errors import BlobMissing, FormatError, IntegrityError, NotFound
from snapshotter.format.digest import digest_of
from snapshotter.image.documents import described, parse_config
from snapshotter.image.places import docker_manifest, layout_index
from snapshotter.image.places.archive_file import ArchiveFile, Member
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import DOCUMENT_MAX, OnProgress, checked_document
from snapshotter.registry.manifest import (
    DOCKER_MANIFEST,
    LAYERS_MAX,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Manifest,
    parse_manifest,
)
from snapshotter.registry.reference import Reference

_BLOBS = "blobs/sha256/"
# Manifests and indexes of an archive that are looked at: links between them may go in circles.
_DOCUMENTS_MAX = 200


class ArchiveImage:
    """A Source: blobs are read where they lie, all work is done in threads."""

    def __init__(
        self, archive: ArchiveFile, top: Descriptor, made: Mapping[str, bytes], named: Mapping[str, Member]
    ) -> None:
        """`made` are documents that the archive has not got, `named` files that do not have a blob's name; by digest."""
        self._archive = archive
        self._top = top
        self._made = made
        self._named = named

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """Return a manifest, checked against its digest."""
        descriptor = descriptor or self._top
        return Manifest(await self.document(descriptor), descriptor.media_type, descriptor.digest)

    async def document(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, checked against its digest."""
        if (made := self._made.get(descriptor.digest)) is not None:
            return made
        return await checked_document(self, descriptor, str(self._archive.path))

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        """Copy a blob into `scratch` and check it against its digest."""
        return await trio.to_thread.run_sync(self._copy, descriptor, scratch, on_progress)

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """Return a part of a blob, unchecked."""
        return await trio.to_thread.run_sync(self._archive.part, self._member(descriptor), start, size)

    def _member(self, descriptor: Descriptor) -> Member:
        found = self._named.get(descriptor.digest) or self._archive.find(layout_index.blob_name(descriptor.digest))
        if found is None:
            raise BlobMissing(f"{self._archive.path} lacks the blob {descriptor.digest} that its image needs")
        return found

    def _copy(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        member = self._member(descriptor)
        path = scratch / descriptor.digest.removeprefix("sha256:")
        whole = hashlib.sha256()
        with disk_errors(path), path.open("wb") as out:
            for piece in self._archive.pieces(member):
                trio.from_thread.check_cancelled()
                whole.update(piece)
                out.write(piece)
                on_progress(len(piece))
        if (f"sha256:{whole.hexdigest()}", member.size) != (descriptor.digest, descriptor.size):
            path.unlink()
            raise IntegrityError(
                f"{member.name} in {self._archive.path} is not {descriptor.digest}, as which the image names it; make "
                "the archive again"
            )
        return path


async def oci_image(archive: ArchiveFile, tag: str | None) -> ArchiveImage:
    """The image called `tag` of an archive that is an OCI layout.

    Raises:
        NotFound: no such image, or no layout.
        FormatError: a damaged one.
    """
    return ArchiveImage(archive, await trio.to_thread.run_sync(_oci_top, archive, tag), {}, {})


async def docker_image(archive: ArchiveFile, name: Reference | None) -> ArchiveImage:
    """The image called `name` of an archive that docker or something like it wrote.

    Raises:
        NotFound: no such image, or no archive of this kind.
        FormatError: a damaged one.
    """
    return await trio.to_thread.run_sync(_docker_image, archive, name)


def _oci_top(archive: ArchiveFile, tag: str | None) -> Descriptor:
    if archive.find(layout_index.INDEX) is None:
        other = archive.find(docker_manifest.NAME) is not None
        raise NotFound(
            f"{archive.path} has no {layout_index.INDEX}"
            + (f"; it is docker's: write docker-archive:{archive.path}" if other else ": it is no OCI archive")
        )
    return layout_index.choose(_entries(archive), tag, str(archive.path))


def _entries(archive: ArchiveFile) -> list[layout_index.Entry]:
    return layout_index.parse_entries(archive.document(layout_index.INDEX, DOCUMENT_MAX), str(archive.path))


def _docker_image(archive: ArchiveFile, name: Reference | None) -> ArchiveImage:
    where = str(archive.path)
    if archive.find(docker_manifest.NAME) is None:
        raise NotFound(f"{where} has no {docker_manifest.NAME}{_what_instead(archive)}")
    images = docker_manifest.parse_saved(archive.document(docker_manifest.NAME, DOCUMENT_MAX), where)
    image = docker_manifest.choose(images, name, where)
    if len(image.layers) > LAYERS_MAX:
        raise FormatError(
            f"{where}: the image has {len(image.layers)} layers; no container can have more than {LAYERS_MAX}"
        )
    raw = archive.document(image.config, DOCUMENT_MAX)
    config = docker_manifest.config_descriptor(digest_of(raw), len(raw))
    if (top := _own_manifest(archive, config.digest)) is not None:
        return ArchiveImage(archive, top, {}, {})
    made, named, layers = {config.digest: raw}, {}, []
    diff_ids = parse_config(raw, config, len(image.layers)).diff_ids
    known: dict[Member, Descriptor] = {}
    for layer, diff_id in zip(image.layers, diff_ids, strict=True):
        member = archive.find(layer)
        if member is None:
            raise BlobMissing(f"{where} lacks the layer {layer} that its {docker_manifest.NAME} names")
        if member not in known:
            known[member] = _layer(archive, layer, member, diff_id)
        layers.append(known[member])
        named[known[member].digest] = member
    manifest = docker_manifest.manifest_for(config, layers)
    top = described(manifest, DOCKER_MANIFEST)
    parse_manifest(manifest, DOCKER_MANIFEST)  # the archive's words are in it
    made[top.digest] = manifest
    return ArchiveImage(archive, top, made, named)


def _what_instead(archive: ArchiveFile) -> str:
    if archive.find(layout_index.INDEX) is not None:
        return f"; it is an OCI archive: write oci-archive:{archive.path}"
    if archive.find("repositories") is not None:
        return ": docker before 1.10 wrote it; load it into a newer one and save it again"
    return ": it is not what `docker save` writes"


def _layer(archive: ArchiveFile, name: str, member: Member, diff_id: str) -> Descriptor:
    """What a layer is to its manifest. A digest that is taken on trust here is checked when the layer is read."""
    media_type = docker_manifest.layer_type(archive.part(member, 0, min(4, member.size)))
    if name.startswith(_BLOBS):
        digest = f"sha256:{name.removeprefix(_BLOBS)}"
    elif media_type == docker_manifest.layer_type(b""):
        digest = diff_id
    else:
        whole = hashlib.sha256()
        for piece in archive.pieces(member):
            trio.from_thread.check_cancelled()
            whole.update(piece)
        digest = f"sha256:{whole.hexdigest()}"
    return Descriptor(media_type, digest, member.size)


def _own_manifest(archive: ArchiveFile, config_digest: str) -> Descriptor | None:
    """The manifest, or the index that leads to it, of an image with this configuration: current dockers save it, too.

    Its layers may say more, such as where their tables of contents are. None if it is not there with all its layers.
    """
    if archive.find(layout_index.INDEX) is None:
        return None
    tops = [layout_index.descriptor_of(entry, str(archive.path)) for entry in _entries(archive)[:_DOCUMENTS_MAX]]
    todo = [(top, top) for top in tops]
    for top, descriptor in todo:
        document = _readable(archive, descriptor)
        if isinstance(document, ImageIndex):
            todo += [(top, child) for child in document.manifests[: max(0, _DOCUMENTS_MAX - len(todo))]]
        elif document is not None and document.config.digest == config_digest:
            layers = (archive.find(layout_index.blob_name(layer.digest)) for layer in document.layers)
            if all(layers):
                return top
    return None


def _readable(archive: ArchiveFile, descriptor: Descriptor) -> ImageIndex | ImageManifest | None:
    """A manifest or index of the archive, None for what is not there or is none."""
    member = archive.find(layout_index.blob_name(descriptor.digest))
    if member is None or member.size > DOCUMENT_MAX:
        return None
    try:
        return parse_manifest(archive.part(member, 0, member.size), descriptor.media_type)
    except FormatError:
        return None
