"""Every dialect of the format, as a container runtime meets it."""

from collections.abc import Iterator

import pytest

from integration.conftest import BUILD, QUIET, StartNode
from integration.demo import is_lazy
from integration.harness.node import Node, node
from integration.harness.registry import Registry
from integration.harness.roots import Roots
from integration.images.convert import push_with_skopeo
from integration.images.dialects import EXTERNAL_SUFFIX, many_layers, push_built, small_layers
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD, small_image
from snapshotter.format.footer import Flavor
from snapshotter.service.mounts import OPTIONS_MAX

UNVERIFIED = {**QUIET, "lazy": {"allow_unverified": True}}


@pytest.fixture(scope="module")
def fresh(registry: Registry) -> Iterator[Node]:
    """A node that these tests share. No two of them may pull equal layers: containerd asks for those only once."""
    with node(registry, settings=QUIET) as this:
        this.sandbox()
        yield this


def run_lazily(this: Node, name: str, layers: int = 3) -> str:
    """Run an image with so many layers of its own, all of which must be lazy; return what it printed."""
    output = this.run(this.pull(name), *SMALL_WORKLOAD)
    assert len(this.layer_states(name)) == layers
    assert set(this.layer_states(name)) <= {"lazy", "complete"}
    return output.stdout


@pytest.mark.parametrize("storage", [False, True], ids=["footer-40", "footer-64"])
def test_both_dialects_of_zstd_chunked_run_lazily(fresh: Node, registry: Registry, storage: bool) -> None:
    name = f"dialects:zstd-{storage:d}"
    with registry.client() as client:
        push_built(client, name, small_layers(Flavor.ZSTD_CHUNKED, storage=storage))
    assert run_lazily(fresh, name) == SMALL_OUTPUT


def test_zstd_chunked_by_skopeo_runs_lazily(fresh: Node, registry: Registry) -> None:
    push_with_skopeo(small_image(BUILD / "small"), registry.host, "by-skopeo:small")
    # The lowest layer holds what the pod's pause image holds, which is there already.
    assert run_lazily(fresh, "by-skopeo:small", layers=2) == SMALL_OUTPUT


def test_demonstration_takes_a_lazy_image_as_it_is(registry: Registry) -> None:
    image = small_image(BUILD / "small")
    push_with_skopeo(image, registry.host, "demo:by-skopeo")
    with registry.client() as client:
        image.push(client, "demo:ordinary")
    assert [is_lazy(registry, tag) for tag in ("by-skopeo", "ordinary")] == [True, False]


def test_external_toc_is_found_beside_the_image(fresh: Node, registry: Registry) -> None:
    with registry.client() as client:
        push_built(client, "dialects:external", small_layers(Flavor.EXTERNAL))
        assert client.has("dialects", "external" + EXTERNAL_SUFFIX)
    assert run_lazily(fresh, "dialects:external") == SMALL_OUTPUT


def test_legacy_stargz_is_lazy_where_the_admin_allows_it(
    start_node: StartNode, fresh: Node, registry: Registry
) -> None:
    layers = small_layers(Flavor.STARGZ)
    for one in layers:
        one.annotations.clear()  # nobody annotated it in its day
    with registry.client() as client:
        push_built(client, "dialects:legacy", layers)
    assert run_lazily(start_node(UNVERIFIED), "dialects:legacy") == SMALL_OUTPUT
    assert fresh.run(fresh.pull("dialects:legacy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
    assert fresh.layer_states("dialects:legacy") == ["ordinary"] * 3


def test_container_of_128_lazy_layers_runs(fresh: Node, registry: Registry) -> None:
    with registry.client() as client:
        push_built(client, "dialects:many", many_layers(128))
    output = fresh.run(fresh.pull("dialects:many"), "/bin/busybox", "cat", "/last", "/file-1", "/file-127")
    assert output.stdout == "127\n1\n127\n"
    states = fresh.layer_states("dialects:many")
    assert len(states) == 128
    assert set(states) <= {"lazy", "complete"}
    roots = Roots(fresh)
    roots.prepare("many", roots.of_image("dialects:many"))
    options = roots.options("many")
    assert len(",".join(options)) <= OPTIONS_MAX
    if fresh.daemon.json("status")["plane"] == "erofs":
        assert sum(f"{fresh.daemon.run_dir}/e/" in part for part in options[-1].split(":")) == 128
