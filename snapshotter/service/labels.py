"""What the labels of a Prepare say of a layer's source, and which of them are believed.

Labels are partly the image author's words: every manifest annotation with the prefix `containerd.io/snapshot/`
arrives as one. So one whole set of labels counts, never a mixture of two. Source: containerd-contract 3.1,
stargz-snapshotter 3.1, design 8.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from snapshotter.errors import NotLazy, Reason
from snapshotter.request import LayerRequest

# The name under which containerd will look for the committed snapshot; its presence asks for a remote one.
SNAPSHOT_REF = "containerd.io/snapshot.ref"
# Marks a snapshot that was never unpacked; the value is the one that other tools know.
REMOTE = "containerd.io/snapshot/remote"
REMOTE_VALUE = "remote snapshot"

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
_CLIENT = "containerd.io/snapshot/remote/stargz."
PREFETCH = _CLIENT + "prefetch"
SKIP_VERIFY = _CLIENT + "skipverify"

# Kubernetes' namespace: there only containerd itself may name a source.
CRI_NAMESPACE = "k8s.io"

_REFERENCE = re.compile(r"[\x21-\x7e]+")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class _Names:
    """The label keys of one set; those in `required` make it complete."""

    reference: str
    layer: str
    layers: str
    manifest: str
    required: tuple[str, ...]


def _cri(prefix: str, *, with_manifest: bool) -> _Names:
    reference, layer, manifest = prefix + "image-ref", prefix + "layer-digest", prefix + "manifest-digest"
    required = (reference, layer, manifest) if with_manifest else (reference, layer)
    return _Names(reference, layer, prefix + "image-layers", manifest, required)


_CRI_IN_KUBERNETES = _cri("containerd.io/snapshot/cri.", with_manifest=True)
_CRI_ELSEWHERE = _cri("containerd.io/snapshot/cri.", with_manifest=False)
_CLIENT_SET = _Names(
    reference=_CLIENT + "reference",
    layer=_CLIENT + "digest",
    layers=_CLIENT + "layers",
    manifest="",  # this set has none
    required=(_CLIENT + "reference", _CLIENT + "digest"),
)


def layer_request(namespace: str, labels: Mapping[str, str]) -> LayerRequest:
    """Read the labels of a Prepare in containerd's namespace `namespace`.

    Raises:
        NotLazy: no set of labels is complete, or one that counts is malformed.
    """
    labels = {key: value for key, value in labels.items() if value}  # an empty value means no label
    trusted_only = namespace == CRI_NAMESPACE
    names = _complete_set((_CRI_IN_KUBERNETES,) if trusted_only else (_CRI_ELSEWHERE, _CLIENT_SET), labels)
    layer_digest = _digest(labels, names.layer)
    return LayerRequest(
        namespace=namespace,
        reference=_reference(labels, names.reference),
        manifest_digest=_digest(labels, names.manifest) if names.manifest in labels else None,
        layer_digest=layer_digest,
        image_layers=_image_layers(labels, names.layers, layer_digest),
        toc_digest=_digest(labels, TOC_DIGEST) if TOC_DIGEST in labels else None,
        prefetch_size=_size(labels, PREFETCH) if PREFETCH in labels else None,
        # In Kubernetes this label can only be the image author's, who does not decide whether the image is verified.
        skip_verify=SKIP_VERIFY in labels and not trusted_only,
        trusted_only=trusted_only,
    )


def said_reference(labels: Mapping[str, str]) -> str:
    """The image reference that the labels name, for logs and tables only; "" without one."""
    said = labels.get(_CRI_ELSEWHERE.reference) or labels.get(_CLIENT_SET.reference) or ""
    return said if _REFERENCE.fullmatch(said) else ""


def _complete_set(sets: tuple[_Names, ...], labels: Mapping[str, str]) -> _Names:
    for names in sets:
        if all(key in labels for key in names.required):
            return names
    for names in sets:
        missing = [key for key in names.required if key not in labels]
        if len(missing) < len(names.required):
            raise NotLazy(Reason.BAD_LABELS, f"the labels name a source in part only: {', '.join(missing)} missing")
    raise NotLazy(
        Reason.NO_LABELS,
        "no labels name the layer's source: set disable_snapshot_annotations = false in containerd's configuration",
    )


def _reference(labels: Mapping[str, str], key: str) -> str:
    text = labels[key]
    if _REFERENCE.fullmatch(text) is None:
        raise NotLazy(Reason.BAD_LABELS, f"label {key}: {text[:200]!r} is not an image reference")
    return text


def _digest(labels: Mapping[str, str], key: str) -> str:
    return _parsed_digest(labels[key], key)


def _parsed_digest(text: str, key: str) -> str:
    if _DIGEST.fullmatch(text) is None:
        raise NotLazy(Reason.BAD_LABELS, f"label {key}: {text[:100]!r} is not a sha256 digest")
    return text


def _image_layers(labels: Mapping[str, str], key: str, layer_digest: str) -> tuple[str, ...]:
    text = labels.get(key, "")
    if not text:
        return (layer_digest,)
    layers = tuple(_parsed_digest(part, key) for part in text.split(","))
    return layers if layer_digest in layers else (layer_digest, *layers)


def _size(labels: Mapping[str, str], key: str) -> int:
    text = labels[key]
    if _SIZE.fullmatch(text) is None:
        raise NotLazy(Reason.BAD_LABELS, f"label {key}: {text[:100]!r} is not a number of bytes")
    return int(text)
