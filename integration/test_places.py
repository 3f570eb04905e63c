"""Where converted images come from and go to, as other tools read and write it: skopeo, ctr, a registry that counts."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import StartNode
from integration.harness.containerd import CommandFailed
from integration.harness.containerd import run as run_command
from integration.harness.daemon import SNAPSHOTTER, snapshotter
from integration.harness.node import CRI_NAMESPACE, LAZY, WHOLE, Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry, RegistryClient
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD
from integration.test_image_pull import pull, remains, run

TIMEOUT_S = 120
OVERHEAD = 64 << 10
"""Bytes of requests, manifests and configurations; the large layer does not fit into it."""


def convert(source: str, target: str, *options: str) -> Mapping[str, Any]:
    """Convert, and return what --json prints."""
    answer: dict[str, Any] = json.loads(snapshotter(["image", "convert", "--json", *options, source, target]))
    return answer


def at_node(node: Node, namespace: str = "default") -> tuple[str, ...]:
    """Options that say how a node's containerd and registry are reached."""
    return ("--plain-http", "--containerd", str(node.containerd.address), "--namespace", namespace)


def skopeo(source: str, target: str) -> None:
    """Copy an image with skopeo."""
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
    run_command(["skopeo", "--insecure-policy", "copy", "--quiet", *tls, source, target])


def layers(client: RegistryClient, name: str) -> list[str]:
    """Digests of an image's layers."""
    repository, _, tag = name.partition(":")
    return [layer["digest"] for layer in client.manifest(repository, tag)["layers"]]


@pytest.fixture(scope="module")
def converted(registry: Registry) -> list[str]:
    """Digests of the layers of the small image, converted: the same wherever it comes from."""
    convert(f"{registry.host}/small:plain", f"{registry.host}/small:places")
    with registry.client() as client:
        return layers(client, "small:places")


def test_what_skopeo_writes_is_read_and_what_we_write_skopeo_reads(
    registry: Registry, converted: list[str], tmp_path: Path
) -> None:
    for place in (
        f"docker-archive:{tmp_path}/docker.tar:example.org/small:v1",
        f"oci-archive:{tmp_path}/oci.tar:v1",
        f"oci:{tmp_path}/layout:v1",
    ):
        skopeo(f"docker://{registry.host}/small:plain", place)
        target = f"{place.partition(':')[0]}:{tmp_path}/ours:example.org/ours:v1"
        found = convert(place, target)
        assert [layer["digest"] for layer in found["images"][0]["layers"]] == converted
        repository = f"{registry.host}/by-{place.partition(':')[0]}"
        if place.startswith("docker-archive"):
            # skopeo unpacks what it reads of such an archive; it is a layout besides, which it copies as it is.
            skopeo(target, f"docker://{repository}-unpacked:v1")
            target = f"oci-archive:{tmp_path}/ours"
        skopeo(target, f"docker://{repository}:v1")
        with registry.client() as client:
            assert layers(client, f"by-{place.partition(':')[0]}:v1") == converted
        written = tmp_path / "ours"
        if written.is_file():
            written.unlink()


def test_blobs_of_one_registry_are_never_sent_to_it_again(start_node: StartNode, converted: list[str]) -> None:
    node = start_node()
    before = node.traffic()
    source = node.reference("small:places")
    first = convert(source, node.reference("mounted/small:lazy"), "--plain-http", "--reuse")
    crossed = node.traffic().since(before)
    assert [layer["digest"] for layer in first["images"][0]["layers"]] == converted
    with node.registry.client() as client:
        assert layers(client, "mounted/small:lazy") == converted
        assert all(client.blob("mounted/small", digest) for digest in converted)
        largest = max(layer["size"] for layer in client.manifest("small", "places")["layers"])
    assert crossed.sent < OVERHEAD < largest
    # And of what is made anew, only what the repository has not got.
    before = node.traffic()
    convert(node.reference("small:plain"), node.reference("small:again"), "--plain-http")
    assert node.traffic().since(before).sent < OVERHEAD


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_archive_is_imported_by_containerd_and_its_export_is_read(
    kind: str, whole_node: Node, converted: list[str], tmp_path: Path
) -> None:
    node, ctr = whole_node, whole_node.ctr()
    convert(f"{node.registry.host}/small:plain", f"{kind}:{tmp_path}/ours.tar:example.org/{kind}:v1")
    name = f"example.org/{kind}:v1"
    ctr("images", "import", str(tmp_path / "ours.tar"))
    assert name in ctr.images()
    try:
        assert checked(node, name, WHOLE) == "(4/4)"
        said = ctr.run(name, f"of-{kind}", SMALL_WORKLOAD, snapshotter=WHOLE, cgroup=node.place.name)
        assert said == SMALL_OUTPUT
        ctr("images", "export", str(tmp_path / "export.tar"), name)
    finally:
        ctr("images", "rm", "--sync", name)
    for source in (f"docker-archive:{tmp_path}/export.tar:{name}", f"oci-archive:{tmp_path}/export.tar:{name}"):
        found = convert(source, f"oci:{tmp_path}/back", "--reuse")
        assert [layer["digest"] for layer in found["images"][0]["layers"]] == converted


def checked(node: Node, name: str, snapshotter_name: str, namespace: str = "default") -> str:
    """How much of an image is there, as containerd sees it; it must be complete."""
    for line in node.ctr(namespace)("images", "check", "--snapshotter", snapshotter_name).splitlines():
        if line.split()[0] == name:
            assert "complete" in line
            assert "incomplete" not in line
            return next(word for word in line.split() if word.startswith("("))
    message = f"no image {name}"
    raise AssertionError(message)


def test_image_in_containerds_store_is_whole_runs_and_goes_without_a_trace(
    start_node: StartNode, converted: list[str], tmp_path: Path
) -> None:
    node = start_node()
    source, target = node.reference("small:plain"), node.reference("small:here")
    found = convert(source, f"containerd:{target}", *at_node(node))
    assert [layer["digest"] for layer in found["images"][0]["layers"]] == converted
    assert remains(node).keys() == {"images", "content"}
    assert checked(node, target, LAZY) == "(4/4)"
    assert run(node, "small:here") == SMALL_OUTPUT
    # In place, and out of the store again.
    again = convert(f"containerd:{target}", f"containerd:{target}", *at_node(node))
    assert again["digest"] == found["digest"]
    before = node.traffic()
    convert(f"containerd:{target}", f"oci-archive:{tmp_path}/a.tar:v1", "--reuse", *at_node(node))
    assert node.traffic().since(before).received == 0
    node.ctr()("images", "rm", "--sync", target)
    assert remains(node) == {}


def test_image_written_into_kubernetes_namespace_is_one_that_pods_use(start_node: StartNode) -> None:
    node = start_node()
    target = node.reference("small:pods")
    convert(node.reference("small:plain"), f"containerd:{target}", *at_node(node, CRI_NAMESPACE))
    wait_for(lambda: bool(node.cri.images()), "CRI's word of the image")
    assert node.run(target, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT


def test_lazily_pulled_image_is_a_source_though_its_layers_were_never_fetched(
    start_node: StartNode, converted: list[str]
) -> None:
    node = start_node()
    pull(node, "small:places")
    source, target = node.reference("small:places"), node.reference("small:copy")
    assert not set(converted) & set(node.ctr().content())
    before = node.traffic()
    found = convert(f"containerd:{source}", f"containerd:{target}", "--reuse", *at_node(node))
    assert [layer["digest"] for layer in found["images"][0]["layers"]] == converted
    assert set(converted) <= set(node.ctr().content())
    fetched = node.traffic().since(before).received
    sizes = sum(layer["size"] for layer in found["images"][0]["layers"])
    assert sizes < fetched < 1.1 * sizes + OVERHEAD
    assert checked(node, target, LAZY) == "(4/4)"
    assert run(node, "small:copy") == SMALL_OUTPUT


def test_interrupted_conversion_leaves_nothing_in_containerd_and_beside_an_archive(
    start_node: StartNode, converted: list[str], tmp_path: Path
) -> None:
    node = start_node()
    pull(node, "small:places")
    before = remains(node)
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    for target in (f"containerd:{node.reference('small:half')}", f"oci-archive:{tmp_path}/half.tar"):
        argv = [
            *SNAPSHOTTER,
            "image",
            "convert",
            *at_node(node),
            f"containerd:{node.reference('small:places')}",
            target,
        ]
        connections = node.traffic().connections
        with node.hanging():
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
            # It asks the registry for a layer, which is not answered.
            wait_for(lambda: node.traffic().connections > connections, "a connection", TIMEOUT_S)  # noqa: B023
            process.send_signal(signal.SIGINT)
            _, words = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode not in (0, None), words
        assert "Traceback" not in words
        assert remains(node) == before
        assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_there_are_told(whole_node: Node, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"no image none:v1 in the namespace default"):
        convert("containerd:none:v1", f"oci:{tmp_path}/x", *at_node(whole_node))
    assert whole_node.ctr()("leases", "ls", "--quiet") == ""
