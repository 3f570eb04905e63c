"""`snapshotter image pull` into a real containerd: what it leaves is what containerd's own tools expect."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from integration.conftest import StartNode
from integration.harness.daemon import SNAPSHOTTER
from integration.harness.leftovers import MARKER
from integration.harness.node import CRI_NAMESPACE, LAZY, WHOLE, Node
from integration.harness.process import wait_for
from integration.harness.registry import RegistryClient
from integration.harness.site import IMAGE, site
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD
from integration.images.trial import PROBE
from integration.images.trial import expected as told
from snapshotter.containerd import ingest, leases
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client

TIMEOUT_S = 120
ROUNDS = 4
LONGEST_PULL_S = 1.4
INDEX = "application/vnd.oci.image.index.v1+json"


def begin(node: Node, name: str, *options: str) -> subprocess.Popen[str]:
    """Start a pull into a node's containerd, of an image of its registry or of another."""
    argv = [*SNAPSHOTTER, "image", "pull", "--plain-http", "--containerd", str(node.containerd.address), *options]
    env = {**os.environ, MARKER: os.environ.get(MARKER, ""), "HOME": str(node.place.folder), "ESTARGZ_TRACEBACK": "1"}
    for name_of_default in ("CONTAINERD_NAMESPACE", "CONTAINERD_ADDRESS", "ESTARGZ_ADDRESS", "DOCKER_CONFIG"):
        env.pop(name_of_default, None)
    return subprocess.Popen(
        [*argv, name if "/" in name else node.reference(name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and what it said."""
    out, words = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, words


def pull(node: Node, name: str, *options: str) -> Mapping[str, Any]:
    """Pull, and return what --json prints."""
    code, out, words = end(begin(node, name, "--json", *options))
    assert code == 0, words
    answer: dict[str, Any] = json.loads(out)
    return answer


def states(pulled: Mapping[str, Any]) -> list[tuple[str, str]]:
    """State and reason of each layer."""
    return [(layer["state"], layer["reason"]) for layer in pulled["layers"]]


def run(node: Node, name: str, snapshotter: str = LAZY) -> str:
    """What the small workload prints in a container that ctr runs."""
    reference = node.reference(name)
    return node.ctr().run(reference, "workload", SMALL_WORKLOAD, snapshotter=snapshotter, cgroup=node.place.name)


def remains(node: Node, namespace: str = "default", snapshotter: str = LAZY) -> dict[str, list[str]]:
    """All that containerd has."""
    ctr = node.ctr(namespace)
    ingests = ctr("content", "active").splitlines()[1:]
    found = {
        "images": ctr.images(),
        "content": ctr.content(),
        "snapshots": ctr.snapshots(snapshotter),
        "leases": ctr("leases", "ls", "--quiet").split(),
        "ingests": ingests,
    }
    return {kind: names for kind, names in found.items() if names}


def remove(node: Node, name: str) -> None:
    """Remove an image and wait until what it held is collected."""
    node.ctr()("images", "rm", "--sync", node.reference(name))


WHOLE_IMAGE = {"images", "content", "snapshots"}
NO_TOC = ("unpacked", "no-toc-digest")


def test_images_of_every_kind_run_check_and_go_without_a_trace(
    start_node: StartNode, lazy_images: None, mixed_image: str
) -> None:
    node = start_node()
    for name, expected, blobs in (
        ("small:lazy", [("lazy", "")] * 3, 2),
        (mixed_image, [("lazy", ""), NO_TOC, ("lazy", "")], 3),
        ("small:plain", [NO_TOC] * 3, 5),
    ):
        pulled = pull(node, name)
        assert states(pulled) == expected
        assert [layer["bytes_fetched"] > 0 for layer in pulled["layers"]] == [
            state == "unpacked" for state, _ in expected
        ]
        assert remains(node).keys() == WHOLE_IMAGE
        assert len(node.ctr().content()) == blobs
        check = node.ctr()("images", "check", "--snapshotter", LAZY).splitlines()[1]
        assert check.split()[-1] == "true"
        assert f"({blobs - 1}/4)" in check
        assert run(node, name) == SMALL_OUTPUT
        assert states(pull(node, name)) == [("present", "")] * 3
        remove(node, name)
        assert remains(node) == {}


def test_image_whose_layers_were_fetched_can_be_tagged_exported_and_pushed(start_node: StartNode) -> None:
    node = start_node()
    pull(node, "small:plain")
    ctr, copy = node.ctr(), node.reference("small-again:plain")
    ctr("images", "tag", node.reference("small:plain"), copy)
    ctr("images", "export", str(node.place / "export.tar"), copy)
    ctr("images", "push", "--plain-http", copy)
    with node.registry.client() as client:
        assert client.manifest("small-again", "plain") == client.manifest("small", "plain")


def test_image_below_an_index_is_that_of_the_platform(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    with node.registry.client() as client:
        push_index(client, "small", {"arm64": "plain", "amd64": "lazy"})
    pulled = pull(node, "small:index", "--platform", "linux/amd64")
    assert states(pulled) == [("lazy", "")] * 3
    assert run(node, "small:index") == SMALL_OUTPUT
    remove(node, "small:index")
    assert remains(node) == {}
    code, out, words = end(begin(node, "small:index", "--platform", "linux/s390x"))
    assert (code, out) == (10, "")
    assert "no manifest for linux/s390x; it has: linux/amd64, linux/arm64" in words
    assert remains(node) == {}


def push_index(client: RegistryClient, repository: str, tags: Mapping[str, str]) -> None:
    """`repository:index`, an index of images by architecture."""
    entries = [
        {**client.descriptor(repository, tag), "platform": {"os": "linux", "architecture": architecture}}
        for architecture, tag in tags.items()
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    client.push_manifest(repository, "index", json.dumps(index).encode(), INDEX)


def test_image_pulled_into_kubernetes_namespace_is_one_that_pods_use(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    pulled = pull(node, "small:lazy", "--namespace", CRI_NAMESPACE)
    assert states(pulled) == [("lazy", "")] * 3
    with node.registry.client() as client:
        image = client.manifest("small", "lazy")["config"]["digest"]
    wait_for(lambda: image in node.cri.images(), "CRI's word of the image")
    for name in (image, node.reference("small:lazy"), f"{node.reference('small')}@{pulled['digest']}"):
        assert node.run(name, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert states(pull(node, "small:lazy", "--namespace", CRI_NAMESPACE)) == [("present", "")] * 3
    node.remove_sandbox()
    for known in node.cri.images():
        node.remove_image(known)
    node.wait_until_collected()
    assert remains(node, CRI_NAMESPACE) == {}


def test_snapshotter_that_mounts_nothing_lazily_gets_the_whole_image(whole_node: Node, lazy_images: None) -> None:
    pulled = pull(whole_node, "small:lazy", "--snapshotter", WHOLE)
    assert states(pulled) == [("unpacked", "")] * 3
    assert run(whole_node, "small:lazy", WHOLE) == SMALL_OUTPUT
    remove(whole_node, "small:lazy")


def test_containerd_without_the_plugin_is_told_what_to_do(whole_node: Node, lazy_images: None) -> None:
    code, out, words = end(begin(whole_node, "small:lazy"))
    assert (code, out) == (63, "")
    assert "has no snapshotter estargz" in words
    assert "snapshotter config containerd --write" in words


def test_daemon_that_is_away_is_told_and_leaves_nothing(start_node: StartNode, lazy_images: None) -> None:
    node = start_node()
    node.daemon.stop()
    code, out, words = end(begin(node, "small:lazy"))
    assert (code, out) == (61, "")
    assert "snapshotter estargz does not answer: start it" in words
    node.daemon.start()
    node.wait_until_served()
    assert remains(node) == {}
    assert states(pull(node, "small:lazy")) == [("lazy", "")] * 3


@pytest.mark.parametrize("name", ["small:lazy", "small:plain"])
def test_pulls_of_one_image_at_once_all_succeed(start_node: StartNode, lazy_images: None, name: str) -> None:
    node = start_node(round_trip_s=0.05)
    processes = [begin(node, name) for _ in range(3)]
    ends = [end(process) for process in processes]
    assert [code for code, _, _ in ends] == [0] * 3, ends
    assert run(node, name) == SMALL_OUTPUT
    remove(node, name)
    assert remains(node) == {}


def test_write_that_somebody_else_has_begun_is_waited_for_and_continued(start_node: StartNode) -> None:
    node = start_node()
    with node.registry.client() as client:
        layer = client.manifest("small", "plain")["layers"][0]
        data = client.blob("small", layer["digest"])
    half = len(data) // 2

    async def hold() -> tuple[int, str, str]:
        with connected(node.containerd.address) as channel:
            client = Client(channel, node.containerd.address, "default", leases.new_id())
            await leases.create(client)
            async with ingest.writing(client, f"layer-{layer['digest']}", layer["digest"], layer["size"]) as write:
                assert write is not None
                await write.write(data[:half])
                process = begin(node, "small:plain", "--json")
                # It unpacks nothing before it has the lowest layer, and cannot have that before this is closed.
                unpacks = lambda: bool(node.ctr().snapshots(LAZY))  # noqa: E731
                await trio.to_thread.run_sync(wait_for, unpacks, "an active snapshot", TIMEOUT_S)
                assert process.poll() is None
            ended = await trio.to_thread.run_sync(end, process)
            await leases.delete(client, sync=True)
            return ended

    code, out, words = trio.run(hold)
    assert code == 0, words
    assert json.loads(out)["layers"][0]["bytes_fetched"] == len(data) - half
    assert run(node, "small:plain") == SMALL_OUTPUT


@contextmanager
def signalled(node: Node, name: str, number: int) -> Iterator[tuple[int, str]]:
    """A pull that gets a signal at a moment that nobody chose; yields its exit code and a word for messages."""
    process = begin(node, name)
    moment = random.uniform(0.3, LONGEST_PULL_S)
    time.sleep(moment)
    process.send_signal(number)
    code, _, words = end(process)
    yield code, f"signal {number} after {moment} s: {code} {words}"


def test_interrupted_pull_leaves_nothing_and_can_be_repeated(
    start_node: StartNode, lazy_images: None, mixed_image: str
) -> None:
    node = start_node(round_trip_s=0.1)
    for number in (signal.SIGINT, signal.SIGTERM) * (ROUNDS // 2):
        with signalled(node, mixed_image, number) as (code, words):
            # Before the first line of the program runs, and after the last, a signal does what it does to every process.
            assert code in (0, 130, -number), words
            left = remains(node)
            assert left == {} or (left.keys() == WHOLE_IMAGE and code != 130), words
            pull(node, mixed_image)
            assert run(node, mixed_image) == SMALL_OUTPUT, words
            remove(node, mixed_image)
            assert remains(node) == {}, words


def test_killed_pull_leaves_a_lease_that_hinders_nobody(
    start_node: StartNode, lazy_images: None, mixed_image: str
) -> None:
    node = start_node(round_trip_s=0.1)
    for _ in range(ROUNDS):
        with signalled(node, mixed_image, signal.SIGKILL) as (_, words):
            pull(node, mixed_image)
            assert run(node, mixed_image) == SMALL_OUTPUT, words
            remove(node, mixed_image)
            # As containerd does when the lease has run out.
            for lease in remains(node).get("leases", []):
                node.ctr()("leases", "rm", "--sync", lease)
            assert remains(node) == {}, words


def test_containerd_killed_in_the_middle_is_told_and_the_next_pull_succeeds(start_node: StartNode) -> None:
    node = start_node()
    with site("killed") as one:
        with RegistryClient(one.server.url) as client:
            layer = client.manifest(*IMAGE.split(":"))["layers"][0]["digest"]
        one.server.script(f"blobs/{layer}", "hang*")
        one.server.forget()
        process = begin(node, one.reference)
        # Asked by the daemon, for a Prepare that is not answered before.
        asked = lambda: any(layer in request.path for request in one.server.requests)  # noqa: E731
        wait_for(asked, "a request for a layer", TIMEOUT_S)
        node.containerd.stop(signal.SIGKILL)
        code, out, words = end(process)
        assert (code, out) == (62, "")
        assert "broke off" in words
        assert "could not be deleted" in words
        node.containerd.start()
        node.wait_until_served()
        one.server.script(f"blobs/{layer}", "ok")
        assert node.ctr().images() == []
        assert states(pull(node, one.reference)) == [("lazy", "")] * 2
        read = (PROBE, "read", "/away/1")
        said = node.ctr().run(one.reference, "reader", read, snapshotter=LAZY, cgroup=node.place.name)
        assert said == told(one.content(1))
