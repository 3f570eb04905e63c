"""`snapshotter image inspect` beside the daemon: what it says of an image is what becomes of it, whoever made it."""

import hashlib
import json
from typing import Any

import pytest

from integration.conftest import BUILD, StartNode
from integration.harness.daemon import snapshotter
from integration.harness.node import Node
from integration.images.convert import convert_elsewhere, push_with_skopeo
from integration.images.sample import small_image


def inspected(*arguments: str) -> Any:
    """What it says for programs of the one image."""
    (image,) = json.loads(snapshotter(["image", "inspect", *arguments, "--json"]))["images"]
    return image


@pytest.fixture(scope="module")
def images(whole_node: Node, lazy_images: None, mixed_image: str) -> list[str]:
    """One image by every tool, and one of which a layer is ordinary."""
    ctr_remote, host = whole_node.ctr(program="ctr-remote"), whole_node.registry.host
    convert_elsewhere(ctr_remote, host, "small:plain", "small:by-ctr-remote")
    convert_elsewhere(ctr_remote, host, "small:plain", "small:by-ctr-remote-zstd", "--zstdchunked")
    push_with_skopeo(small_image(BUILD / "small"), host, "small-by-skopeo:1")
    return ["small:lazy", "small:by-ctr-remote", "small:by-ctr-remote-zstd", "small-by-skopeo:1", mixed_image]


def test_layers_are_what_the_daemon_makes_of_them(start_node: StartNode, images: list[str], mixed_image: str) -> None:
    node = start_node()
    for name in images:
        image = inspected(node.reference(name))
        node.pull(name)
        states = {row["digest"]: row for row in node.daemon.json("layers") if row["image"].endswith(f"/{name}")}
        assert image["lazy"] is (name != mixed_image)
        for layer in image["layers"]:
            # containerd does not ask for the layers above an ordinary one.
            if (row := states.get(layer["digest"])) is not None:
                assert layer["lazy"] is (row["state"] != "ordinary"), (name, layer["why"], row)
                assert layer["toc_digest"] in (row["toc_digest"], None)


def test_image_is_the_same_in_containerds_store(whole_node: Node, lazy_images: None) -> None:
    whole_node.pull_whole("small:lazy")
    reference = whole_node.reference("small:lazy")
    socket = ("--containerd", str(whole_node.containerd.address))
    assert inspected(f"containerd:{reference}", *socket) == inspected(reference)
    layer = inspected(reference)["layers"][0]["digest"]
    digest = hashlib.sha256(snapshotter(["image", "inspect", reference, "--toc", layer]).encode()).hexdigest()
    assert whole_node.ctr(program="ctr-remote")("images", "get-toc-digest", layer).strip() == f"sha256:{digest}"
