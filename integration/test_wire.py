"""What crosses the wire is what was needed."""

import os
import stat
from pathlib import Path

from integration.conftest import FILLING, StartNode
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.images.sample import WORKLOAD


def test_pull_and_start_fetch_a_small_share_of_the_image(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    node.sandbox()
    with node.registry.client() as client:
        size = sum(layer["size"] for layer in client.manifest("sample", "lazy")["layers"])
    before = node.traffic()
    image = node.pull("sample:lazy")
    pulled = node.traffic().since(before).received
    assert pulled < size / 20
    assert node.run(image, *WORKLOAD).exit_code == 0
    needed = node.traffic().since(before).received
    assert pulled < needed < size / 3


def fetches(node: Node) -> bool:
    """Whether something is on its way for any reader, or will be without one."""
    seen = node.daemon.json("top", "--once", "--interval", "0.1")
    return any(seen[f"fetching_{why}"] for why in ("demand", "prefetch", "background"))


def test_second_container_fetches_nothing(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    image = node.pull("sample:lazy")
    node.run(image, *WORKLOAD)
    # Neighbours of what was read may still be coming.
    wait_for(lambda: not fetches(node), "the end of all fetches")
    before = node.traffic()
    assert node.run(image, *WORKLOAD).exit_code == 0
    assert node.traffic().since(before).received == 0


def test_background_brings_the_rest_and_then_the_registry_is_not_needed(
    start_node: StartNode, lazy_images: None
) -> None:
    node = start_node(FILLING)
    node.sandbox()
    image = node.pull("sample:lazy")
    node.wait_until_complete("sample:lazy")
    with node.outage():
        output = node.run(image, "sh", "-c", "find /usr /opt -type f -exec cat {} + > /dev/null")
    assert (output.exit_code, output.stderr) == (0, "")


def test_next_version_of_an_image_fetches_only_what_changed(
    start_node: StartNode, lazy_images: None, plane: str
) -> None:
    node = start_node(plane=plane)
    node.pull("torture:lazy")
    with node.view("torture:lazy") as tree:
        read_everything(tree)
    before = node.traffic()
    with node.registry.client() as client:
        size = sum(layer["size"] for layer in client.manifest("torture-next", "lazy")["layers"])
    node.pull("torture-next:lazy")
    with node.view("torture-next:lazy") as tree:
        read_everything(tree)
        assert (tree / "news").read_bytes() == b"one new file\n"
    assert node.traffic().since(before).received < size / 10


def read_everything(tree: Path) -> None:
    """Read every regular file below `tree`."""
    for folder, _, names in os.walk(os.fsencode(tree)):
        for name in names:
            path = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb", buffering=0) as content:
                    while content.read(1 << 20):
                        pass
