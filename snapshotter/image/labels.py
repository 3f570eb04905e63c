"""The labels of images in containerd: what keeps content from being collected, and what a snapshotter learns of a layer. Pure.

Source: containerd's images.ChildGCLabels, its docker.AppendDistributionSourceLabel and its snapshots annotations;
containerd-contract 3.1.
"""

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate

from snapshotter.containerd.snapshots import REMOTE
from snapshotter.errors import ConfigError
from snapshotter.format.digest import digest_of
from snapshotter.image.documents import LAYERS
from snapshotter.registry.manifest import (
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
)
from snapshotter.registry.reference import Reference, parse_reference

SNAPSHOT_REF = "containerd.io/snapshot.ref"
UNCOMPRESSED = "containerd.io/uncompressed"
MANAGED = ("io.cri-containerd.image", "managed")
"""How the CRI plugin marks records that it lists."""

LABEL_MAX = 4096
"""Bytes of a label's key and value together."""

_GC = "containerd.io/gc.ref.content."
_GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."
_SOURCE = "containerd.io/distribution.source."
_INHERITED = "containerd.io/snapshot/"
_CRI = "containerd.io/snapshot/cri."


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The names of the snapshots that hold the lowest layer, the lowest two, and so on.

    Source: OCI Image Specification 1.1, config.md, layer ChainID.
    """
    return list(accumulate(diff_ids, lambda below, diff_id: digest_of(f"{below} {diff_id}".encode())))


def extraction_key(chain_id: str) -> str:
    """A key for the active snapshot that becomes `chain_id`, as containerd's own unpacker makes them."""
    mark = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"extract-{time.time_ns() % 1_000_000_000}-{mark} {chain_id}"


def children_labels(document: ImageIndex | ImageManifest) -> dict[str, str]:
    """Labels by which a manifest or index keeps what it names, fetched or not."""
    if isinstance(document, ImageManifest):
        return {
            f"{_GC}config": document.config.digest,
            **{f"{_GC}l.{number}": layer.digest for number, layer in enumerate(document.layers)},
        }
    labels: dict[str, str] = {}
    counts = {"m.": 0, "": 0}
    for child in document.manifests:
        kind = "m." if child.media_type in (OCI_MANIFEST, DOCKER_MANIFEST) else ""
        labels[f"{_GC}{kind}{counts[kind]}"] = child.digest
        counts[kind] += 1
    return labels


def chain_label(snapshotter: str, top_chain_id: str) -> dict[str, str]:
    """The label by which an image's configuration keeps its snapshots."""
    return {f"{_GC_SNAPSHOT}{snapshotter}": top_chain_id}


def source_label(reference: Reference, present: Mapping[str, str]) -> dict[str, str]:
    """The label that says which repositories have a blob: the image's and those that `present` labels name.

    Pushing to the same registry mounts the blob from there. Empty if the label would become too long.
    """
    key = _SOURCE + _without_port(reference.host)
    repositories = {*filter(None, present.get(key, "").split(",")), reference.repository}
    value = ",".join(sorted(repositories))
    return {key: value} if len(key) + len(value.encode()) <= LABEL_MAX else {}


def sources_in(labels: Mapping[str, str], near: Reference | None) -> list[Reference]:
    """The repositories that have a blob of these labels, without tags.

    The labels leave out the port of a registry; that of `near` is taken where it is on the same host.
    """
    found: list[Reference] = []
    for key, value in sorted(labels.items()):
        if not key.startswith(_SOURCE):
            continue
        host = key.removeprefix(_SOURCE)
        if near is not None and _without_port(near.host) == host:
            host = near.host
        for repository in value.split(","):
            try:
                reference = parse_reference(f"{host}/{repository}")
            except ConfigError:
                continue  # anybody can write labels
            found.append(Reference(reference.host, reference.repository))
    return found


def snapshot_labels(
    reference: Reference, manifest_digest: str, layers: Sequence[Descriptor], number: int, chain_id: str
) -> dict[str, str]:
    """The labels of the snapshot of layer `number`: where its content is, and the name that it is to have."""
    layer = layers[number]
    inherited = {
        key: value
        for key, value in layer.annotations.items()
        # REMOTE is the snapshotter's word, and an author could put it into an annotation.
        if key.startswith(_INHERITED) and key != REMOTE and len(key.encode()) + len(value.encode()) <= LABEL_MAX
    }
    return {
        **inherited,
        f"{_CRI}image-ref": str(reference),
        f"{_CRI}layer-digest": layer.digest,
        f"{_CRI}manifest-digest": manifest_digest,
        f"{_CRI}image-layers": _cut(f"{_CRI}image-layers", [above.digest for above in layers[number:]]),
        SNAPSHOT_REF: chain_id,
    }


def apply_type(media_type: str) -> str:
    """What containerd is told a layer is: docker's word for zstd is one that containerd does not know."""
    return LAYERS[media_type] if media_type.endswith(".zstd") else media_type


def _cut(key: str, digests: Sequence[str]) -> str:
    """As many digests, separated by commas, as fit into one label."""
    value = ""
    for digest in digests:
        longer = f"{value},{digest}" if value else digest
        if len(key) + len(longer) > LABEL_MAX:
            break
        value = longer
    return value


def _without_port(host: str) -> str:
    if ":" in host.rpartition("]")[2]:
        host = host.rpartition(":")[0]
    return host.strip("[]")
