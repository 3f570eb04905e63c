"""A lazily mounted image shows what containerd's own unpacking of it shows."""

import os

import pytest

from integration.conftest import StartNode
from integration.fidelity import FORMAT_ENTRIES, Clock, differences, report
from integration.harness.node import Node


def compare(lazy: Node, whole: Node, name: str, clock: Clock = Clock.NANOSECONDS, oracle: str = "") -> str:
    """Every difference between the lazy view of an image and its unpacked tree (or that of `oracle`)."""
    lazy.pull(name)
    # An ordinary layer is unpacked on both sides and would prove nothing.
    assert set(lazy.layer_states(name)) <= {"lazy", "complete"}
    oracle = oracle or name
    whole.pull_whole(oracle)
    with lazy.view(name) as left, whole.view(oracle, namespace="default") as right:
        assert FORMAT_ENTRIES.isdisjoint(os.listdir(os.fsencode(left)))
        return report(differences(left, right, clock))


def test_lazy_tree_equals_the_unpacked_one(
    start_node: StartNode, whole_node: Node, lazy_images: None, plane: str
) -> None:
    assert compare(start_node(plane=plane), whole_node, "torture:lazy") == ""


def test_distribution_read_file_by_file_equals_the_unpacked_one(
    start_node: StartNode, whole_node: Node, lazy_images: None
) -> None:
    assert compare(start_node(), whole_node, "sample:lazy") == ""


@pytest.mark.long
def test_distribution_equals_the_unpacked_one_on_the_fuse_plane(
    start_node: StartNode, whole_node: Node, lazy_images: None
) -> None:
    assert compare(start_node(plane="fuse"), whole_node, "sample:lazy") == ""


def test_conversion_changes_nothing_in_an_image(whole_node: Node, lazy_images: None) -> None:
    for name in ("torture:plain", "torture:lazy"):
        whole_node.pull_whole(name)
    with (
        whole_node.view("torture:plain", namespace="default") as before,
        whole_node.view("torture:lazy", namespace="default") as after,
    ):
        assert report(differences(before, after)) == ""


@pytest.mark.parametrize("name", ["torture-readable:other", "torture-readable:other-zstd"])
def test_images_of_another_tool_are_shown_as_they_are(
    start_node: StartNode, whole_node: Node, images_of_other_tools: None, name: str
) -> None:
    assert compare(start_node(), whole_node, name, Clock.SECONDS) == ""


def test_image_by_skopeo_is_shown_as_it_was_before(
    start_node: StartNode, whole_node: Node, images_of_other_tools: None
) -> None:
    # Its own unpacked tree is no oracle: containerd refuses the DiffIDs that skopeo 1.9 gives these layers.
    # The one attribute with an empty value is lost in its TOC.
    found = compare(start_node(), whole_node, "by-skopeo:torture-readable", oracle="torture-readable:plain")
    assert [line.partition(": ")[0] for line in found.splitlines()] == ["./attributes/user"]
    assert found.startswith("./attributes/user: xattrs: ")


def test_layer_whose_toc_lost_the_bytes_of_a_name_is_ordinary_and_whole(
    start_node: StartNode, whole_node: Node, images_of_other_tools: None
) -> None:
    node = start_node()
    node.pull("torture:other")
    assert node.layer_states("torture:other") == ["ordinary", "ordinary", "lazy"]
    whole_node.pull_whole("torture:other")
    with node.view("torture:other") as left, whole_node.view("torture:other", namespace="default") as right:
        assert report(differences(left, right, Clock.SECONDS)) == ""


@pytest.mark.parametrize("layers", [1, 2])
def test_lower_layers_alone_equal_their_unpacked_tree(
    start_node: StartNode, whole_node: Node, lazy_images: None, plane: str, layers: int
) -> None:
    node = start_node(plane=plane)
    node.pull("torture:lazy")
    whole_node.pull_whole("torture:lazy")
    with (
        node.view("torture:lazy", layers=layers) as left,
        whole_node.view("torture:lazy", namespace="default", layers=layers) as right,
    ):
        assert report(differences(left, right)) == ""
