"""A lazily mounted image shows what containerd's own unpacking of it shows."""

import pytest

from integration.conftest import QUIET, StartNode
from integration.fidelity import Clock, differences, report
from integration.harness.node import Node


def compare(lazy: Node, whole: Node, name: str, clock: Clock = Clock.NANOSECONDS) -> str:
    """Every difference between the lazy view of an image and its unpacked tree."""
    lazy.pull(name)
    whole.pull_whole(name)
    with lazy.view(name) as left, whole.view(name, namespace="default") as right:
        return report(differences(left, right, clock))


@pytest.mark.parametrize("name", ["torture:lazy", "sample:lazy"])
def test_lazy_tree_equals_the_unpacked_one(
    start_node: StartNode, whole_node: Node, lazy_images: None, name: str
) -> None:
    assert compare(start_node(), whole_node, name) == ""


def test_conversion_changes_nothing_in_an_image(whole_node: Node, lazy_images: None) -> None:
    for name in ("torture:plain", "torture:lazy"):
        whole_node.pull_whole(name)
    with (
        whole_node.view("torture:plain", namespace="default") as before,
        whole_node.view("torture:lazy", namespace="default") as after,
    ):
        assert report(differences(before, after)) == ""


@pytest.mark.parametrize("name", ["torture:other", "torture:other-zstd"])
def test_images_of_another_tool_are_shown_as_they_are(
    start_node: StartNode, whole_node: Node, images_of_another_tool: None, name: str
) -> None:
    assert compare(start_node(), whole_node, name, Clock.SECONDS) == ""


@pytest.mark.parametrize("layers", [1, 2])
def test_lower_layers_alone_equal_their_unpacked_tree(
    start_node: StartNode, whole_node: Node, lazy_images: None, layers: int
) -> None:
    node = start_node(QUIET)
    node.pull("torture:lazy")
    whole_node.pull_whole("torture:lazy")
    with (
        node.view("torture:lazy", layers=layers) as left,
        whole_node.view("torture:lazy", namespace="default", layers=layers) as right,
    ):
        assert report(differences(left, right)) == ""
