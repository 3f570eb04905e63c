"""The daemon ends, kindly or not, and comes back with everything it had, without any network."""

import signal

import pytest

from integration.conftest import StartNode
from integration.images.sample import WORKLOAD


@pytest.mark.parametrize(("plane", "number"), [("auto", signal.SIGKILL), ("fuse", signal.SIGTERM)])
def test_snapshots_come_back_and_containers_start_while_the_registry_is_down(
    start_node: StartNode, lazy_images: None, plane: str, number: signal.Signals
) -> None:
    node = start_node(plane=plane)
    image = node.pull("sample:lazy")
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"
    before = sorted(node.snapshots())
    with node.outage():
        node.restart_snapshotter(number)
        assert sorted(node.snapshots()) == before
        assert {row["state"] for row in node.daemon.json("layers") if "sample" in row["image"]} <= {"lazy", "complete"}
        output = node.run(image, *WORKLOAD)
    assert (output.exit_code, output.stdout) == (0, "ready [1]\n")


def test_content_not_yet_fetched_is_read_after_a_restart(start_node: StartNode, lazy_images: None, plane: str) -> None:
    node = start_node(plane=plane)
    image = node.pull("sample:lazy")
    node.restart_snapshotter(signal.SIGKILL)
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"


def test_image_is_removed_and_pulled_again_after_a_restart(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    image = node.pull("sample:lazy")
    node.restart_snapshotter()
    node.remove_image(image)
    node.wait_until_collected()
    assert node.run(node.pull("sample:lazy"), *WORKLOAD).stdout == "ready [1]\n"
