"""Layers of old tools and odd ones: converted, they are what containerd unpacks from them."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration.conftest import StartNode
from integration.fidelity import differences, report
from integration.harness.containerd import CommandFailed
from integration.harness.node import Node
from integration.harness.registry import Registry, RegistryClient
from integration.images.convert import convert
from integration.images.oci import CONFIG, MANIFEST, config_of
from integration.images.odd import kept, spoilt, taken

PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
# containerd's reader makes an empty layer of the one, and takes the other for the root that it does not unpack.
UNPACKED_ALL_THE_SAME = {"pax-without-an-entry", "root-is-a-file"}


def push_tars(client: RegistryClient, name: str, tars: Sequence[bytes]) -> None:
    """Put an image of these tars into the registry, without compression."""
    repository, _, tag = name.partition(":")
    digests = ["sha256:" + hashlib.sha256(one).hexdigest() for one in tars]
    for digest, one in zip(digests, tars, strict=True):
        with tempfile.NamedTemporaryFile() as content:
            content.write(one)
            content.flush()
            client.push_blob(repository, digest, Path(content.name))
    rows = [{"mediaType": PLAIN_LAYER, "digest": d, "size": len(one)} for d, one in zip(digests, tars, strict=True)]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG}, "layers": rows}
    client.push_image(repository, tag, manifest, config_of({"Cmd": ["none"]}, digests))


FORMS = {"lazy": (), "zstd": ("--zstdchunked",), "shared": ("--min-chunk-size", "1MiB")}


@pytest.fixture(scope="module", params=list(FORMS))
def odd_image(request: pytest.FixtureRequest, registry: Registry, whole_node: Node) -> str:
    """odd:plain converted in each way; on the oracle's node both are unpacked."""
    name = f"odd:{request.param}"
    with registry.client() as client:
        push_tars(client, "odd:plain", [taken(), *kept()])
    convert(registry.host, "odd:plain", name, *FORMS[request.param])
    for one in ("odd:plain", name):
        whole_node.pull_whole(one)
    return name


def test_converted_odd_layers_unpack_to_the_same(whole_node: Node, odd_image: str) -> None:
    with (
        whole_node.view("odd:plain", namespace="default") as before,
        whole_node.view(odd_image, namespace="default") as after,
    ):
        assert report(differences(before, after)) == ""


def test_odd_layers_are_shown_as_they_unpack(
    start_node: StartNode, whole_node: Node, odd_image: str, plane: str
) -> None:
    node = start_node(plane=plane)
    node.pull(odd_image)
    assert node.layer_states(odd_image) == ["lazy", *["ordinary"] * len(kept())]
    with node.view(odd_image) as left, whole_node.view("odd:plain", namespace="default") as right:
        assert report(differences(left, right)) == ""


@pytest.mark.long
@pytest.mark.parametrize("what", list(spoilt()))
def test_what_we_refuse_containerd_refuses_too(registry: Registry, whole_node: Node, what: str) -> None:
    name = f"spoilt:{what.lower()}"
    with registry.client() as client:
        push_tars(client, name, [spoilt()[what]])
    with pytest.raises(CommandFailed):
        convert(registry.host, name, "spoilt:lazy")
    if what in UNPACKED_ALL_THE_SAME:
        whole_node.pull_whole(name)
    else:
        with pytest.raises(CommandFailed):
            whole_node.pull_whole(name)
