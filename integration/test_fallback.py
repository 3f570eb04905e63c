"""What cannot be lazy is pulled the ordinary way through the same snapshotter, and the reason is kept."""

from integration.conftest import QUIET, StartNode
from integration.harness.node import LAZY, Node
from integration.images.sample import WORKLOAD


def states(node: Node, name: str) -> list[tuple[str, str]]:
    """State and reason of each layer of an image, as the daemon shows them."""
    return [(row["state"], row["reason"]) for row in node.daemon.json("layers") if row["image"].endswith(name)]


def test_image_without_a_table_of_contents_runs_as_an_ordinary_one(start_node: StartNode) -> None:
    node = start_node()
    output = node.run(node.pull("sample:plain"), *WORKLOAD)
    assert (output.exit_code, output.stdout) == (0, "ready [1]\n")
    assert states(node, "sample:plain") == [("ordinary", "no-toc-digest")] * 3


def test_image_denied_by_the_admin_is_ordinary(start_node: StartNode, lazy_images: None) -> None:
    node = start_node({**QUIET, "lazy": {"deny": ["*/sample:*"]}})
    assert node.run(node.pull("sample:lazy"), *WORKLOAD).exit_code == 0
    assert {state for state, _ in states(node, "sample:lazy")} == {"ordinary"}
    assert {reason for _, reason in states(node, "sample:lazy")} == {"denied-by-config"}


def test_ctr_pulls_and_runs_an_ordinary_image_through_the_snapshotter(start_node: StartNode) -> None:
    node = start_node()
    node.pull_whole("sample:plain", LAZY)
    reference = node.reference("sample:plain")
    output = node.ctr().run(reference, "workload", WORKLOAD, snapshotter=LAZY, cgroup=node.place.name)
    assert output == "ready [1]\n"


def test_lazy_image_pulled_whole_by_ctr_runs_too(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    node.pull_whole("sample:lazy", LAZY)
    reference = node.reference("sample:lazy")
    output = node.ctr().run(reference, "workload", WORKLOAD, snapshotter=LAZY, cgroup=node.place.name)
    assert output == "ready [1]\n"
