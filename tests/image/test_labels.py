"""The labels of images in containerd, which containerd and its other clients read too."""

import re

import pytest

from snapshotter.image.labels import (
    LABEL_MAX,
    apply_type,
    chain_ids,
    children_labels,
    extraction_key,
    snapshot_labels,
    source_label,
    sources_in,
)
from snapshotter.registry.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Descriptor, ImageIndex
from snapshotter.registry.reference import parse_reference
from tests.image.images import OCI_LAYER, sha256

KEY = "containerd.io/distribution.source."


def test_chain_of_one_layer_is_its_diff_id_and_each_further_one_hashes_what_is_below() -> None:
    first, second, third = (sha256(bytes([number])) for number in range(3))
    below = sha256(f"{first} {second}".encode())
    assert chain_ids([first, second, third]) == [first, below, sha256(f"{below} {third}".encode())]
    assert chain_ids([]) == []


def test_extraction_keys_look_like_containerds_and_differ() -> None:
    keys = {extraction_key("sha256:x") for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"extract-\d{1,9}-[\w-]{4} sha256:x", key) for key in keys)


def test_index_counts_manifests_and_everything_else_apart() -> None:
    types = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, "application/other")
    children = tuple(Descriptor(kind, f"sha256:{number}", 1) for number, kind in enumerate(types))
    assert children_labels(ImageIndex(OCI_INDEX, children, {})) == {
        "containerd.io/gc.ref.content.m.0": "sha256:0",
        "containerd.io/gc.ref.content.0": "sha256:1",
        "containerd.io/gc.ref.content.m.1": "sha256:2",
        "containerd.io/gc.ref.content.1": "sha256:3",
    }


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        ("busybox", {KEY + "docker.io": "library/busybox"}),
        ("example.org:5000/a/b@sha256:" + "0" * 64, {KEY + "example.org": "a/b"}),
    ],
)
def test_source_of_a_blob_is_named_without_the_registrys_port(reference: str, label: dict[str, str]) -> None:
    assert source_label(parse_reference(reference), {}) == label


def test_sources_of_a_blob_are_gathered_until_the_label_is_full() -> None:
    reference, key = parse_reference("example.org/b"), KEY + "example.org"
    assert source_label(reference, {key: "c,a,b", "other": "x"}) == {key: "a,b,c"}
    assert source_label(reference, {key: "x" * LABEL_MAX}) == {}


def test_list_of_layers_above_is_cut_at_whole_digests_before_the_label_is_full() -> None:
    layers = [Descriptor(OCI_LAYER, sha256(bytes([number])), 1) for number in range(100)]
    labels = snapshot_labels(parse_reference("example.org/b:1"), sha256(b""), layers, 0, "chain")
    key = "containerd.io/snapshot/cri.image-layers"
    listed = labels[key].split(",")
    assert listed == [layer.digest for layer in layers[: len(listed)]]
    assert LABEL_MAX - len(f",{layers[0].digest}") < len(key) + len(labels[key]) <= LABEL_MAX


def test_annotation_that_no_label_can_hold_is_left_out() -> None:
    annotations = {"containerd.io/snapshot/long": "x" * LABEL_MAX, "containerd.io/snapshot/short": "x", "other": "x"}
    layer = Descriptor(OCI_LAYER, sha256(b""), 1, annotations)
    labels = snapshot_labels(parse_reference("example.org/b:1"), sha256(b""), [layer], 0, "chain")
    assert {"containerd.io/snapshot/short"} == labels.keys() & annotations.keys()


def test_zstd_of_docker_is_told_in_the_word_that_containerd_knows() -> None:
    assert apply_type("application/vnd.docker.image.rootfs.diff.tar.zstd") == (
        "application/vnd.oci.image.layer.v1.tar+zstd"
    )
    assert apply_type(OCI_LAYER) == OCI_LAYER


def test_sources_that_labels_name_are_read_back_with_the_port_of_the_image_beside_them() -> None:
    labels = {KEY + "example.org": "a/b,c", KEY + "docker.io": "library/busybox", "other": "x", KEY + "bad host": "d"}
    near = parse_reference("example.org:5000/a/b:v1")
    assert [str(one) for one in sources_in(labels, near)] == [
        "docker.io/library/busybox",
        "example.org:5000/a/b",
        "example.org:5000/c",
    ]
    assert [one.host for one in sources_in(labels, None)] == ["docker.io", "example.org", "example.org"]
