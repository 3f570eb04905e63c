"""What the tests of places share: an image, and work between two places that are named as the command line names them."""

import io
import json
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from snapshotter.config import RegistryConfig
from snapshotter.image.places.ends import Source, Target
from snapshotter.image.places.location import parse_location
from snapshotter.image.places.opening import Access, open_places
from snapshotter.registry.manifest import Descriptor, ImageIndex, ImageManifest, parse_manifest
from tests.image.images import NAME, Image, sha256

TARS = (b"lower" * 30_000, b"upper" * 10)


def access(containerd: Path = Path("/nowhere"), scratch: Path | None = None, namespace: str = "default") -> Access:
    """How the places of a test are reached."""
    return Access(RegistryConfig(retries=1), True, containerd, namespace, scratch)


def between(
    source: str, target: str, work: Callable[[Source, Target], Awaitable[Any]], how: Access | None = None
) -> Any:
    """Do `work` between two places; what it returns."""

    async def main() -> Any:
        async with open_places(parse_location(source), parse_location(target), how or access()) as (first, second):
            return await work(first, second)

    return trio.run(main)


def at(source: str, work: Callable[[Source], Awaitable[Any]], how: Access | None = None) -> Any:
    """Do `work` with a source alone."""

    async def main() -> Any:
        async with open_places(parse_location(source), None, how or access()) as (first, _):
            return await work(first)

    return trio.run(main)


def copier(scratch: Path, suffix: str = "") -> Callable[[Source, Target], Awaitable[list[str]]]:
    """Work that copies an image as it is, with all platforms; the digests of the blobs whose bytes were sent."""

    async def work(source: Source, target: Target) -> list[str]:
        top = await source.manifest(None)
        descriptor = Descriptor(top.media_type, top.digest, len(top.raw))
        sent = await copy_blobs(source, target, parse_manifest(top.raw, top.media_type), scratch)
        await target.name_image(top.raw, descriptor, suffix)
        return sent

    return work


async def copy_blobs(source: Source, target: Target, document: ImageManifest | ImageIndex, scratch: Path) -> list[str]:
    """Copy what a manifest or index names."""
    sent: list[str] = []
    if isinstance(document, ImageIndex):
        for child in document.manifests:
            found = await source.manifest(child)
            sent += await copy_blobs(source, target, parse_manifest(found.raw, found.media_type), scratch)
            await target.put_manifest(found.raw, child)
        return sent
    for blob in document.layers:
        told: list[int] = []
        if await target.adopt(blob):
            continue
        file = await source.blob_file(blob, scratch, told.append)
        assert sum(told) == blob.size
        told.clear()
        if await target.put_blob(blob, file, told.append):
            sent.append(blob.digest)
            assert sum(told) == blob.size
    if not await target.adopt(document.config):
        raw = await source.document(document.config)
        if await target.put_blob(document.config, raw):
            sent.append(document.config.digest)
    return sent


def copy(source: str, target: str, scratch: Path, how: Access | None = None) -> list[str]:
    """Copy an image as it is."""
    sent: list[str] = between(source, target, copier(scratch), how)
    return sent


def read_back(source: str, scratch: Path, how: Access | None = None) -> list[bytes]:
    """The plain bytes of an image's blobs: of each layer, and of the configuration."""

    async def work(place: Source) -> list[bytes]:
        top = await place.manifest(None)
        document = parse_manifest(top.raw, top.media_type)
        assert isinstance(document, ImageManifest)
        found = []
        for blob in document.layers:
            data = (await place.blob_file(blob, scratch, lambda _size: None)).read_bytes()
            assert sha256(data) == blob.digest
            assert await place.read_range(blob, 1, 4) == data[1:5]
            found.append(data)
        return [*found, await place.document(document.config)]

    back: list[bytes] = at(source, work, how)
    return back


Members = list[tuple[str, bytes | str]]


def saved(*tars: bytes, names: tuple[str, ...] | None = ("example.org/app:v1",)) -> tuple[Members, dict[str, Any]]:
    """An image as dockers before 25 save it, and its entry of manifest.json: plain layers, the topmost behind a link."""
    image = Image(*tars, docker=True)
    config = image.blobs[image.document["config"]["digest"]]
    members: Members = [(f"{sha256(config)[7:]}.json", config)]
    layers = []
    for data in tars:
        folder = sha256(b"id of" + data)[7:]
        members += [(f"{folder}/VERSION", b"1.0"), (f"{folder}/json", b"{}"), (f"{folder}/layer.tar", data)]
        layers.append(f"{folder}/layer.tar")
    if tars:
        top = f"top/{sha256(tars[-1])[7:]}.tar"
        members[-1:] = [(top, tars[-1]), (layers[-1], f"../{top}")]
    return members, {"Config": members[0][0], "RepoTags": list(names) if names else None, "Layers": layers}


def docker_tar(*images: tuple[Members, dict[str, Any]]) -> bytes:
    """An archive of saved images."""
    members = [member for image, _ in images for member in image]
    return tar_of([*members, ("manifest.json", json.dumps([entry for _, entry in images]).encode())])


def tar_of(members: Members) -> bytes:
    """A tar of files (bytes) and symbolic links (texts)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def oci_members(image: Image, *tags: str) -> Members:
    """The files of an OCI archive with this image under these tags."""
    descriptor = image.manifest()
    entries = [{**descriptor, "annotations": {NAME: tag}} for tag in tags] or [descriptor]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    blobs: Members = [(f"blobs/sha256/{digest[7:]}", data) for digest, data in image.blobs.items()]
    return [*blobs, ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", index)]
