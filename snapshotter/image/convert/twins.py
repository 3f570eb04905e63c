"""zstd:chunked images for two families of tools: the same blobs, named by two manifests of one index.

containers/storage (podman 5, CRI-O) refuses an image whose layers have the digests of both tables of contents, and
stargz-snapshotter mounts none without its own. So there is a second manifest, for the first; it is found by an annotation
of the index that says that the image is compressed by zstd. Everybody else takes the first manifest for the platform.

Source: containers/image internal/manifest, `OCI1InstanceAnnotationCompressionZSTD` [tried with podman 4.3 and storage 1.65].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from snapshotter.format.writer.write import for_containers_storage
from snapshotter.image import documents
from snapshotter.registry.manifest import OCI_MANIFEST, Descriptor, ImageManifest, parse_manifest

COMPRESSED_BY_ZSTD = "io.github.containers.compression.zstd"


@dataclass(frozen=True, slots=True)
class Twin:
    """The second manifest, and its entry of the index."""

    raw: bytes
    descriptor: Descriptor


def twin_of(raw: bytes, entry: Descriptor) -> Twin | None:
    """The twin of the manifest `raw`, whose entry of the index is `entry`; None if it needs none."""
    manifest = parse_manifest(raw, OCI_MANIFEST)
    if not isinstance(manifest, ImageManifest) or not any(map(_is_chunked, manifest.layers)):
        return None
    layers = [replace(one, annotations=for_containers_storage(one.annotations)) for one in manifest.layers]
    other = documents.manifest_json(manifest.config, layers, manifest.annotations)
    found = documents.described(other, OCI_MANIFEST, {**entry.annotations, COMPRESSED_BY_ZSTD: "true"})
    return Twin(other, replace(found, platform=entry.platform))


def without_twins(manifests: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """The entries of an index but for those that are another entry's image in zstd."""
    plain = {one.platform for one in manifests if COMPRESSED_BY_ZSTD not in one.annotations}
    return tuple(one for one in manifests if COMPRESSED_BY_ZSTD not in one.annotations or one.platform not in plain)


def _is_chunked(layer: Descriptor) -> bool:
    return layer.media_type.endswith("+zstd") and for_containers_storage(layer.annotations) != dict(layer.annotations)
