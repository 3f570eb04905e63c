"""Images of another tool run lazily here, and that tool takes ours."""

import pytest

from integration.conftest import StartNode
from integration.harness.node import LAZY_ALIAS, Node
from integration.images.convert import convert_elsewhere
from integration.images.sample import WORKLOAD


@pytest.mark.parametrize("options", [(), ("--zstdchunked",)], ids=["estargz", "zstdchunked"])
def test_image_converted_by_another_tool_runs_lazily(
    start_node: StartNode, whole_node: Node, options: tuple[str, ...]
) -> None:
    name = "sample:other" + "".join(options)
    convert_elsewhere(whole_node.ctr(program="ctr-remote"), node_registry(whole_node), "sample:plain", name, *options)
    node = start_node()
    output = node.run(node.pull(name), *WORKLOAD)
    assert (output.exit_code, output.stdout) == (0, "ready [1]\n")
    assert {row["state"] for row in node.daemon.json("layers") if row["image"].endswith(name)} <= {"lazy", "complete"}


def test_our_image_is_pulled_lazily_by_another_tool(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    reference = node.reference("sample:lazy")
    node.ctr(program="ctr-remote")("images", "rpull", "--plain-http", "--snapshotter", LAZY_ALIAS, reference)
    with node.registry.client() as client:
        layers = {layer["digest"] for layer in client.manifest("sample", "lazy")["layers"]}
    assert set(node.ctr().content()) & layers == set()
    output = node.ctr().run(reference, "workload", WORKLOAD, snapshotter=LAZY_ALIAS, cgroup=node.place.name)
    assert output == "ready [1]\n"


def test_another_tool_finds_the_toc_digest_that_we_annotated(whole_node: Node, lazy_images: None) -> None:
    whole_node.pull_whole("sample:lazy")
    with whole_node.registry.client() as client:
        layers = client.manifest("sample", "lazy")["layers"]
    for layer in layers:
        found = whole_node.ctr(program="ctr-remote")("images", "get-toc-digest", layer["digest"]).strip()
        assert found == layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]


def node_registry(node: Node) -> str:
    """Where a node pushes to."""
    return node.registry.host
