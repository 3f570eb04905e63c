"""Images of another tool run lazily here, and that tool takes ours."""

import pytest

from integration.conftest import StartNode
from integration.harness.node import LAZY_ALIAS, Node
from integration.images.convert import convert_elsewhere
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD, WORKLOAD

FORMS = pytest.mark.parametrize("options", [(), ("--zstdchunked",)], ids=["estargz", "zstdchunked"])


def pull_converted_elsewhere(node: Node, whole: Node, source: str, options: tuple[str, ...]) -> str:
    """Convert an image with ctr-remote, pull the result and check that each layer is lazy; return the image's id."""
    repository = source.partition(":")[0]
    name = f"{repository}:other" + "".join(options)
    convert_elsewhere(whole.ctr(program="ctr-remote"), whole.registry.host, source, name, *options)
    image = node.pull(name)
    states = [row["state"] for row in node.daemon.json("layers") if row["image"].endswith(name)]
    assert len(states) == 3
    assert set(states) <= {"lazy", "complete"}
    return image


@FORMS
def test_image_converted_by_another_tool_runs_lazily(
    start_node: StartNode, whole_node: Node, options: tuple[str, ...]
) -> None:
    node = start_node()
    image = pull_converted_elsewhere(node, whole_node, "small:plain", options)
    assert node.run(image, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT


@pytest.mark.long
@FORMS
def test_large_image_converted_by_another_tool_runs_lazily(
    start_node: StartNode, whole_node: Node, options: tuple[str, ...]
) -> None:
    node = start_node()
    image = pull_converted_elsewhere(node, whole_node, "sample:plain", options)
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"


def test_our_image_is_pulled_lazily_by_another_tool(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    reference = node.reference("small:lazy")
    node.ctr(program="ctr-remote")("images", "rpull", "--plain-http", "--snapshotter", LAZY_ALIAS, reference)
    with node.registry.client() as client:
        layers = {layer["digest"] for layer in client.manifest("small", "lazy")["layers"]}
    assert set(node.ctr().content()) & layers == set()
    output = node.ctr().run(reference, "workload", SMALL_WORKLOAD, snapshotter=LAZY_ALIAS, cgroup=node.place.name)
    assert output == SMALL_OUTPUT


def test_another_tool_finds_the_toc_digest_that_we_annotated(whole_node: Node, lazy_images: None) -> None:
    whole_node.pull_whole("small:lazy")
    with whole_node.registry.client() as client:
        layers = client.manifest("small", "lazy")["layers"]
    for layer in layers:
        found = whole_node.ctr(program="ctr-remote")("images", "get-toc-digest", layer["digest"]).strip()
        assert found == layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
