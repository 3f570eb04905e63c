"""Every dialect of the format, as a container runtime meets it."""

import pytest

from integration.conftest import BUILD, QUIET, StartNode
from integration.harness.node import Node
from integration.harness.registry import Registry
from integration.images.convert import push_with_skopeo
from integration.images.dialects import EXTERNAL_SUFFIX, many_layers, push_built, small_layers
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD, small_image
from snapshotter.format.footer import Flavor

UNVERIFIED = {**QUIET, "lazy": {"allow_unverified": True}}


def run_lazily(node: Node, name: str) -> str:
    """Run an image of three layers, all of which must be lazy; return what it printed."""
    output = node.run(node.pull(name), *SMALL_WORKLOAD)
    assert len(node.layer_states(name)) == 3
    assert set(node.layer_states(name)) <= {"lazy", "complete"}
    return output.stdout


@pytest.mark.parametrize("storage", [False, True], ids=["footer-40", "footer-64"])
def test_both_dialects_of_zstd_chunked_run_lazily(start_node: StartNode, registry: Registry, storage: bool) -> None:
    name = f"dialects:zstd-{storage:d}"
    with registry.client() as client:
        push_built(client, name, small_layers(Flavor.ZSTD_CHUNKED, storage=storage))
    assert run_lazily(start_node(), name) == SMALL_OUTPUT


def test_zstd_chunked_by_skopeo_runs_lazily(start_node: StartNode, registry: Registry) -> None:
    push_with_skopeo(small_image(BUILD / "small"), registry.host, "by-skopeo:small")
    assert run_lazily(start_node(), "by-skopeo:small") == SMALL_OUTPUT


def test_external_toc_is_found_beside_the_image(start_node: StartNode, registry: Registry) -> None:
    with registry.client() as client:
        push_built(client, "dialects:external", small_layers(Flavor.EXTERNAL))
        assert client.has("dialects", "external" + EXTERNAL_SUFFIX)
    assert run_lazily(start_node(), "dialects:external") == SMALL_OUTPUT


def test_legacy_stargz_is_lazy_where_the_admin_allows_it(start_node: StartNode, registry: Registry) -> None:
    layers = small_layers(Flavor.STARGZ)
    for one in layers:
        one.annotations.clear()  # nobody annotated it in its day
    with registry.client() as client:
        push_built(client, "dialects:legacy", layers)
    assert run_lazily(start_node(UNVERIFIED), "dialects:legacy") == SMALL_OUTPUT
    node = start_node()
    assert node.run(node.pull("dialects:legacy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert node.layer_states("dialects:legacy") == ["ordinary"] * 3


def test_container_of_128_lazy_layers_runs(start_node: StartNode, registry: Registry) -> None:
    with registry.client() as client:
        push_built(client, "dialects:many", many_layers(128))
    node = start_node()
    output = node.run(node.pull("dialects:many"), "/bin/busybox", "cat", "/last", "/file-1", "/file-127")
    assert output.stdout == "127\n1\n127\n"
    states = node.layer_states("dialects:many")
    assert len(states) == 128
    assert set(states) <= {"lazy", "complete"}
