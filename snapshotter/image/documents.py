"""The JSON of a converted image: configuration, manifest and index, made from those of its source. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import FormatError
from snapshotter.format.digest import digest_of
from snapshotter.format.writer.write import WrittenLayer
from snapshotter.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = _OCI_LAYER + "+gzip"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
# Layer media types that can be converted, and what OCI calls them.
LAYERS = {
    _OCI_LAYER: _OCI_LAYER,
    _OCI_LAYER + "+gzip": _OCI_LAYER + "+gzip",
    _OCI_LAYER + "+zstd": _OCI_LAYER + "+zstd",
    _DOCKER_LAYER: _OCI_LAYER,
    _DOCKER_LAYER + ".gzip": _OCI_LAYER + "+gzip",
    _DOCKER_LAYER + ".zstd": _OCI_LAYER + "+zstd",
}
# Annotations that describe the bytes of the old blob, and would be lies about those of the new one.
_STALE = ("containerd.io/snapshot/", "io.containers.estargz.", "io.containers.zstd-chunked.", "io.github.containers.")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What converting needs of an image's configuration."""

    document: Mapping[str, Any]
    diff_ids: tuple[str, ...]
    os: str
    architecture: str
    variant: str


def parse_config(raw: bytes, descriptor: Descriptor, layer_count: int) -> ImageConfig:
    """Return the configuration in `raw`.

    Raises:
        FormatError: not the configuration of a container image with that many layers.
    """
    if descriptor.media_type not in CONFIGS:
        raise FormatError(f"the config is {descriptor.media_type}: this is not a container image, and has no layers")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise FormatError(f"the image's config {descriptor.digest} is not JSON: {fault}") from None
    rootfs = document.get("rootfs") if isinstance(document, dict) else None
    # Without layers docker leaves the list out, and Go's encoder makes null of it.
    diff_ids = (rootfs.get("diff_ids") or []) if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(item, str) for item in diff_ids):
        raise FormatError(f"the image's config {descriptor.digest} has no rootfs.diff_ids")
    if len(diff_ids) != layer_count:
        raise FormatError(f"the image's config names {len(diff_ids)} layers, its manifest {layer_count}")
    words = [document.get(key) or "" for key in ("os", "architecture", "variant")]
    if not all(isinstance(word, str) for word in words):
        raise FormatError(f"the image's config {descriptor.digest} has a platform that is not text")
    return ImageConfig(document, tuple(diff_ids), *words)


def config_json(config: ImageConfig, diff_ids: Sequence[str]) -> bytes:
    """Return the configuration with other DiffIDs and everything else, history included, as it was."""
    return _json({**config.document, "rootfs": {**config.document["rootfs"], "diff_ids": list(diff_ids)}})


def toc_config_json(diff_ids: Sequence[str]) -> bytes:
    """Return the configuration of an image that holds nothing but tables of contents, and is for no platform."""
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return _json({"architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs})


def layer_descriptor(layer: WrittenLayer, source: Descriptor) -> Descriptor:
    """Return the manifest's entry for a written blob; the source's annotations stay where they are still true."""
    kept = {key: value for key, value in source.annotations.items() if not key.startswith(_STALE)}
    media_type = f"{_OCI_LAYER}+{layer.compression}"
    return Descriptor(media_type, layer.digest, layer.size, {**kept, **layer.annotations})


def kept_descriptor(source: Descriptor, found: Mapping[str, str] | None = None) -> Descriptor:
    """Return the manifest's entry for a blob that stays as it is; `found` are annotations that it should have had."""
    return Descriptor(LAYERS[source.media_type], source.digest, source.size, {**source.annotations, **(found or {})})


def described(raw: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
    """Return the descriptor of a blob that is in memory."""
    return Descriptor(media_type, digest_of(raw), len(raw), annotations or {})


def manifest_json(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """Return an OCI manifest."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_json(config),
        "layers": [descriptor_json(layer) for layer in layers],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return _json(document)


def index_json(manifests: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """Return an OCI index."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor_json(manifest) for manifest in manifests],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return _json(document)


def descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    """Return a descriptor as it stands in a manifest."""
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    if (platform := descriptor.platform) is not None:
        document["platform"] = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            document["platform"]["variant"] = platform.variant
    return document


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")
