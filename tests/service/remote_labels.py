"""Prepares with a target, as containerd's unpacker sends them."""

from collections.abc import Mapping

import grpc
import pytest

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.service.labels import SNAPSHOT_REF, TOC_DIGEST
from tests.service.node import Mounts, Node

L1, L2, L3, MANIFEST = (f"sha256:{digit * 64}" for digit in "1239")
T1 = "sha256:" + "a" * 64
T2 = "sha256:" + "b" * 64
REFERENCE = "registry.example/app:1"
CRI = "containerd.io/snapshot/cri."


def labels_of(
    chain: str, layer: str, above: tuple[str, ...] = (), toc: str | None = None, reference: str = REFERENCE
) -> dict[str, str]:
    """Labels of the layer `layer`, `above` being the digests of those above it."""
    labels = {
        SNAPSHOT_REF: chain,
        CRI + "image-ref": reference,
        CRI + "layer-digest": layer,
        CRI + "manifest-digest": MANIFEST,
        CRI + "image-layers": ",".join((layer, *above)),
    }
    return labels | ({TOC_DIGEST: toc} if toc else {})


def ask(node: Node, labels: Mapping[str, str], parent: str = "", namespace: str = "default", key: str = "") -> Mounts:
    """A Prepare with these labels; the mounts of a fallback."""
    key = key or f"{namespace}/1/extract-1-abcd {labels[SNAPSHOT_REF]}"
    return node.client.prepare(key, parent, labels, namespace)


def adopted(node: Node, labels: Mapping[str, str], parent: str = "", namespace: str = "default", key: str = "") -> str:
    """A Prepare that must answer AlreadyExists; the name of the snapshot that containerd then finds."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(node, labels, parent, namespace, key)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS, error.details()
    target = labels[SNAPSHOT_REF]
    found = node.client.walk(f'labels."containerd.io/snapshot.ref"=="{target}",parent=="{parent}"')
    [name] = [info.name for info in found if info.kind == pb.COMMITTED]
    return name


def prepare_remote(node: Node, chain: str, layer: str, parent: str = "") -> str:
    """Pull one layer lazily; the snapshot's name."""
    return adopted(node, labels_of(chain, layer), parent)
