"""From a reference to the manifest of one platform and its configuration, all checked; nothing is written."""

from dataclasses import dataclass, replace

from snapshotter.errors import FormatError
from snapshotter.image import documents
from snapshotter.image.places.ends import DOCUMENT_MAX
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import Descriptor, ImageIndex, ImageManifest, choose_platform, parse_manifest
from snapshotter.registry.platform import Platform, compatible, normalised
from snapshotter.registry.reference import Reference, checked_digest

# An index may name indexes; nobody needs more of them than this.
_INDEX_DEPTH = 4
_FOREIGN = ("foreign", "nondistributable")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index as it came."""

    descriptor: Descriptor
    raw: bytes
    parsed: ImageIndex | ImageManifest


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image for one platform. `documents` lead from what the reference names to the manifest, which is the last."""

    documents: tuple[Document, ...]
    manifest: ImageManifest
    config: bytes
    diff_ids: tuple[str, ...]
    platform: Platform

    @property
    def target(self) -> Descriptor:
        """What the reference names."""
        return self.documents[0].descriptor

    @property
    def manifest_digest(self) -> str:
        """The digest of the platform's manifest."""
        return self.documents[-1].descriptor.digest


async def resolve(registry: Registry, reference: Reference, platform: Platform, *, demanded: bool) -> Resolved:
    """Fetch what the reference names up to the configuration.

    A `demanded` platform is refused if the image is for another one, also where it has no index.

    Raises:
        FormatError: not an image, none for this platform, or one with layers that containerd cannot unpack.
        RegistryError: and its subclasses.
    """
    found = [await _fetch(registry, reference, None)]
    while isinstance(index := found[-1].parsed, ImageIndex):
        if len(found) > _INDEX_DEPTH:
            raise FormatError(f"{reference}: the index leads to indexes more than {_INDEX_DEPTH} deep")
        images = tuple(child for child in index.manifests if not child.attests)
        found.append(await _fetch(registry, reference, choose_platform(replace(index, manifests=images), platform)))
    manifest = found[-1].parsed
    if not isinstance(manifest, ImageManifest):  # the loop above ends with nothing else
        raise FormatError(f"{reference} leads to no manifest")
    _check_layers(reference, manifest)
    if manifest.config.size > DOCUMENT_MAX:
        raise FormatError(f"{reference}: its config has {manifest.config.size} bytes; the limit is 8 MiB")
    blob = registry.blob(reference, manifest.config.digest, manifest.config.size)
    raw = await blob.read_whole(DOCUMENT_MAX)
    config = documents.parse_config(raw, manifest.config, len(manifest.layers))
    for diff_id in config.diff_ids:
        checked_digest(diff_id)
    there = normalised(Platform(config.os or "linux", config.architecture, config.variant))
    if demanded and there not in compatible(platform):
        raise FormatError(f"{reference} is an image for {there} alone, not for {platform}")
    return Resolved(tuple(found), manifest, raw, config.diff_ids, there)


async def _fetch(registry: Registry, reference: Reference, descriptor: Descriptor | None) -> Document:
    answer = await registry.manifest(reference, descriptor.digest if descriptor else None)
    if descriptor is not None and descriptor.size != len(answer.raw):
        raise FormatError(
            f"{reference}: manifest {descriptor.digest} has {len(answer.raw)} bytes, its index says {descriptor.size}"
        )
    parsed = parse_manifest(answer.raw, answer.media_type)
    return Document(Descriptor(answer.media_type, answer.digest, len(answer.raw)), answer.raw, parsed)


def _check_layers(reference: Reference, manifest: ImageManifest) -> None:
    for layer in manifest.layers:
        if layer.media_type in documents.LAYERS:
            continue
        if any(word in layer.media_type for word in _FOREIGN):
            raise FormatError(
                f"{reference}: layer {layer.digest} ({layer.media_type}) is a foreign one, which registries do not "
                "keep; this image cannot be pulled here"
            )
        raise FormatError(
            f"{reference}: layer {layer.digest} is {layer.media_type}, which is no container image's layer that "
            "containerd can unpack"
        )
