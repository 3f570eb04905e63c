"""Manifests and indexes, OCI and docker schema 2: raw bytes to checked values. Pure: no I/O, no async.

Source: OCI Image Specification 1.1, manifest.md, image-index.md, descriptor.md; Docker Image Manifest V2, Schema 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from snapshotter.errors import FormatError
from snapshotter.registry.platform import Platform, compatible, normalised
from snapshotter.registry.reference import checked_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)

_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"

MANIFEST_MAX = 8 << 20
"""Bytes of a manifest or index: containerd reads no larger one either (its MaxManifestSize)."""

LAYERS_MAX = 500
"""Layers of an image: overlayfs stacks no more (OVL_MAX_STACK in linux/fs/overlayfs/params.h), and all are asked for at once."""

_EMPTY: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or an index as the registry sent it; `digest` is the sha256 of `raw`, computed by us."""

    raw: bytes
    media_type: str
    digest: str


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is known of some content before it is fetched. `size` is in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    platform: Platform | None = None

    @property
    def attests(self) -> bool:
        """Whether it says something of another image, as buildkit puts it into an index, and is none."""
        return "vnd.docker.reference.type" in self.annotations


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One image: its configuration and its layers, lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """Several manifests, usually one image for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


class _PlatformJson(msgspec.Struct):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _DescriptorJson(msgspec.Struct):
    media_type: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] = msgspec.field(name="mediaType")
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    annotations: dict[str, str] | None = None
    platform: _PlatformJson | None = None


class _DocumentJson(msgspec.Struct):
    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str | None = msgspec.field(name="mediaType", default=None)
    config: _DescriptorJson | None = None
    layers: list[_DescriptorJson] | None = None
    manifests: list[_DescriptorJson] | None = None
    annotations: dict[str, str] | None = None
    fs_layers: Any = msgspec.field(name="fsLayers", default=None)


_DECODER = msgspec.json.Decoder(_DocumentJson)


def parse_manifest(raw: bytes, media_type: str | None = None) -> ImageManifest | ImageIndex:
    """Return the image or the index that `raw` describes.

    `media_type` is what the registry or the descriptor called it; without one the document must say it itself, or be
    unmistakable. A document that could be read as both kinds is refused: two readers could see two images in it.

    Raises:
        FormatError: not a manifest of a kind we know, or one with impossible sizes, digests or media types.
    """
    if len(raw) > MANIFEST_MAX:
        raise FormatError(f"the manifest has {len(raw)} bytes; the limit is {MANIFEST_MAX}")
    try:
        document = _DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"the manifest is not what the OCI image specification describes: {error}") from None
    kind = _kind(document, media_type)
    if document.schema_version != 2:
        raise FormatError(f"manifest schemaVersion {document.schema_version}; only 2 is supported")
    annotations = document.annotations or _EMPTY
    if kind in _INDEXES:
        if document.layers is not None or document.config is not None:
            raise FormatError(f"the document is called {kind} and also has an image's config or layers")
        manifests = tuple(_descriptor(entry, f"manifests[{n}]") for n, entry in enumerate(document.manifests or ()))
        return ImageIndex(kind, manifests, annotations)
    if document.manifests is not None:
        raise FormatError(f"the document is called {kind} and also has an index's manifests")
    if document.config is None:
        raise FormatError("the manifest has no config descriptor")
    if len(document.layers or ()) > LAYERS_MAX:
        raise FormatError(
            f"the image has {len(document.layers or ())} layers; no container can have more than {LAYERS_MAX}"
        )
    layers = tuple(_descriptor(entry, f"layers[{n}]") for n, entry in enumerate(document.layers or ()))
    return ImageManifest(kind, _descriptor(document.config, "config"), layers, annotations)


def choose_platform(index: ImageIndex, host: Platform) -> Descriptor:
    """Return the manifest that containerd would run on `host`: best variant first, one without platform last.

    Raises:
        FormatError: no manifest fits; the message lists what there is.
    """
    best: tuple[int, Descriptor] | None = None
    wanted = compatible(host)
    for descriptor in index.manifests:
        if descriptor.media_type not in _MANIFESTS and descriptor.media_type not in _INDEXES:
            continue
        if descriptor.platform is None:
            rank = len(wanted)
        elif (platform := normalised(descriptor.platform)) in wanted:
            rank = wanted.index(platform)
        else:
            continue
        if best is None or rank < best[0]:
            best = (rank, descriptor)
    if best is None:
        there = ", ".join(sorted({str(d.platform) for d in index.manifests if d.platform})[:20]) or "none"
        raise FormatError(f"the image has no manifest for {host}; it has: {there}")
    return best[1]


def _kind(document: _DocumentJson, media_type: str | None) -> str:
    """The document's media type, from outside and inside, which must not contradict each other."""
    outside = media_type if media_type in _MANIFESTS or media_type in _INDEXES else None
    for name in (document.media_type, media_type):
        if name is not None and name.startswith(_SCHEMA1):
            raise FormatError("a docker schema 1 manifest; push the image again with a current tool")
    if document.fs_layers is not None:
        raise FormatError("the document has the fsLayers of a docker schema 1 manifest; push it with a current tool")
    inside = document.media_type
    if inside is not None and inside not in _MANIFESTS and inside not in _INDEXES:
        raise FormatError(f"mediaType {inside[:120]!r} is neither an image manifest nor an index")
    if inside is not None and outside is not None and inside != outside:
        raise FormatError(f"the registry calls the manifest {outside}, the manifest calls itself {inside}")
    if (known := outside or inside) is not None:
        return known
    if document.manifests is not None and document.layers is None:
        return OCI_INDEX
    if document.config is not None and document.manifests is None:
        return OCI_MANIFEST
    raise FormatError("the document has no media type and is neither clearly an image manifest nor an index")


def _descriptor(entry: _DescriptorJson, where: str) -> Descriptor:
    if "/" not in entry.media_type or not entry.media_type.isascii() or not entry.media_type.isprintable():
        raise FormatError(f"{where}: {entry.media_type!r} is not a media type")
    try:
        digest = checked_digest(entry.digest)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    platform = entry.platform
    return Descriptor(
        entry.media_type,
        digest,
        entry.size,
        entry.annotations or _EMPTY,
        Platform(platform.os, platform.architecture, platform.variant) if platform is not None else None,
    )
