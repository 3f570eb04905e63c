"""A lazily pulled image under a real container runtime, from pull to removal."""

import os

from integration.conftest import StartNode
from integration.harness.cri import Output
from integration.harness.node import CRI_NAMESPACE, Node
from integration.harness.process import wait_for
from integration.images.sample import WORKLOAD


def layer_digests(node: Node, name: str) -> set[str]:
    """Digests of the layer blobs of an image in the registry."""
    repository, _, tag = name.partition(":")
    with node.registry.client() as client:
        return {layer["digest"] for layer in client.manifest(repository, tag)["layers"]}


def test_lazy_image_runs_and_its_layers_are_not_downloaded(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    image = node.pull("sample:lazy")
    output = node.run(image, *WORKLOAD)
    assert (output.exit_code, output.stdout) == (0, "ready [1]\n")
    assert node.content() & layer_digests(node, "sample:lazy") == set()


def test_exec_logs_and_statistics_work_in_a_lazy_container(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    container = node.start(node.pull("sample:lazy"), "sh", "-c", "echo first; echo second >&2; exec sleep 1000")
    # Its two streams reach the log each by its own way.
    wait_for(lambda: container.output() == Output(0, "first\n", "second\n"), "the container's output")
    listing = container.exec(["python3", "-c", "import email; print(email.__name__)"])
    assert (listing.exit_code, listing.stdout, listing.stderr) == (0, "email\n", "")
    assert container.exec(["sh", "-c", "exit 7"]).exit_code == 7
    assert container.exec(["sh", "-c", "echo more >> /etc/passwd && tail -n 1 /etc/passwd"]).stdout == "more\n"
    # containerd collects statistics every ten seconds; the images' size is what their tables of contents say.
    wait_for(lambda: node.cri.image_usage().used_bytes > 100_000_000, "image statistics")
    wait_for(lambda: node.cri.image_usage().inodes > 6000, "image statistics of all layers")


def test_removal_leaves_nothing_of_the_image(start_node: StartNode, lazy_images: None, plane: str) -> None:
    node = start_node(plane=plane)
    image = node.pull("sample:lazy")
    node.run(image, *WORKLOAD)
    root = node.daemon.root
    assert any((root / "index").iterdir())
    node.remove_sandbox()
    for pulled in node.cri.images():
        node.remove_image(pulled)
    node.wait_until_collected()
    for kind in ("tocs", "index", "manifests", "objects", "late", "partial", "snapshots", "erofs"):
        folder = root / kind
        wait_for(lambda folder=folder: files_below(folder) == [], f"an empty {kind}")  # type: ignore[misc]
    assert files_below(node.daemon.run_dir / "l") == []
    # A layer's files go before its mount.
    wait_for(lambda: not {"overlay", "erofs"} & {mount.kind for mount in node.mounts()}, "the end of all mounts")
    assert node.ctr(CRI_NAMESPACE).images() == []


def files_below(folder: os.PathLike[str]) -> list[str]:
    """Names of everything below `folder` that is not a folder."""
    return [name for _, _, names in os.walk(folder) for name in names]
