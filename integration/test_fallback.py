"""What cannot be lazy is pulled the ordinary way through the same snapshotter, and the reason is kept."""

from integration.conftest import QUIET, StartNode
from integration.harness.node import LAZY, Node
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD


def states(node: Node, name: str) -> list[tuple[str, str]]:
    """State and reason of each layer of an image, as the daemon shows them."""
    return [(row["state"], row["reason"]) for row in node.daemon.json("layers") if row["image"].endswith(name)]


def test_image_without_a_table_of_contents_runs_as_an_ordinary_one(start_node: StartNode) -> None:
    node = start_node()
    assert node.run(node.pull("small:plain"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert states(node, "small:plain") == [("ordinary", "no-toc-digest")] * 3


def test_image_denied_by_the_admin_is_ordinary(start_node: StartNode, lazy_images: None) -> None:
    node = start_node({**QUIET, "lazy": {"deny": ["*/small:*"]}})
    assert node.run(node.pull("small:lazy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert states(node, "small:lazy") == [("ordinary", "denied-by-config")] * 3


def test_ordinary_layer_in_the_middle_leaves_the_lazy_ones_lazy(
    start_node: StartNode, mixed_image: str, plane: str
) -> None:
    node = start_node(plane=plane)
    assert node.run(node.pull(mixed_image), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert [state in {"lazy", "complete"} for state, _ in states(node, mixed_image)] == [True, False, True]


def test_pull_goes_the_ordinary_way_when_resolving_takes_too_long(start_node: StartNode, lazy_images: None) -> None:
    node = start_node({**QUIET, "lazy": {"resolve_timeout_s": 0.1}}, round_trip_s=0.3)
    assert node.run(node.pull("small:lazy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert {state for state, _ in states(node, "small:lazy")} == {"ordinary"}


def test_ctr_pulls_and_runs_an_ordinary_image_through_the_snapshotter(start_node: StartNode) -> None:
    node = start_node()
    node.pull_whole("small:plain", LAZY)
    reference = node.reference("small:plain")
    output = node.ctr().run(reference, "workload", SMALL_WORKLOAD, snapshotter=LAZY, cgroup=node.place.name)
    assert output == SMALL_OUTPUT


def test_lazy_image_pulled_whole_by_ctr_runs_too(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    node.pull_whole("small:lazy", LAZY)
    reference = node.reference("small:lazy")
    output = node.ctr().run(reference, "workload", SMALL_WORKLOAD, snapshotter=LAZY, cgroup=node.place.name)
    assert output == SMALL_OUTPUT
