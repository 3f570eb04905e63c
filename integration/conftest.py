"""What the tests with a real containerd share: one registry with the images, and nodes that start empty."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.harness.daemon import Table
from integration.harness.node import PAUSE, WHOLE, Node, node, running_registry
from integration.harness.registry import Registry
from integration.harness.scratch import scratch, termination_unwinds
from integration.images.convert import convert, convert_elsewhere, push_with_skopeo
from integration.images.sample import pause_image, sample_image, small_image
from integration.images.torture import torture_image
from integration.images.trial import push_trial
from snapshotter.plane.erofs.probing import probe

BUILD = Path(__file__).parent.parent / "build" / "images"
# Only what a test asks for crosses the wire, and a small disk does not evict what it looks at.
QUIET: Table = {"fetch": {"background": False}, "cache": {"min_free": 0}}
# Besides, a read brings nothing but the file that is read.
ALONE: Table = {**QUIET, "fetch": {"background": False, "demand_window": 0}}
# Everything comes by itself, at once.
FILLING: Table = {**QUIET, "fetch": {"background": True, "background_delay_s": 0}}
PLANES = ("erofs", "fuse")
StartNode = Callable[..., Node]


@pytest.fixture(scope="session", autouse=True)
def termination() -> Iterator[None]:
    """A terminated run cleans up like an interrupted one."""
    with termination_unwinds():
        yield


@pytest.fixture(scope="session")
def registry(termination: None) -> Iterator[Registry]:
    """A registry with the ordinary images: pause:1, and as :plain sample, small and three kinds of torture."""
    with running_registry() as registry, registry.client() as client:
        pause_image(BUILD / "pause").push(client, PAUSE)
        sample_image(BUILD / "sample").push(client, "sample:plain")
        small_image(BUILD / "small").push(client, "small:plain")
        torture_image(BUILD / "torture").push(client, "torture:plain")
        torture_image(BUILD / "torture-next", b"one new file\n").push(client, "torture-next:plain")
        torture_image(BUILD / "torture-readable", readable=True).push(client, "torture-readable:plain")
        yield registry


@pytest.fixture(scope="session")
def lazy_images(registry: Registry) -> None:
    """The same images as :lazy, made by our converter."""
    for name in ("sample", "small", "torture", "torture-next"):
        convert(registry.host, f"{name}:plain", f"{name}:lazy")


@pytest.fixture(scope="session")
def mixed_image(registry: Registry, lazy_images: None) -> str:
    """small:mixed, the lazy small image with its middle layer as it was before the conversion."""
    with registry.client() as client:
        manifest = dict(client.manifest("small", "lazy"))
        manifest["layers"] = [*manifest["layers"]]
        manifest["layers"][1] = client.manifest("small", "plain")["layers"][1]
        config = json.loads(client.blob("small", manifest["config"]["digest"]))
        config["rootfs"]["diff_ids"][1] = client.config("small", "plain")["rootfs"]["diff_ids"][1]
        client.push_image("small", "mixed", manifest, config)
    return "small:mixed"


@pytest.fixture(scope="session")
def trial_image(registry: Registry) -> str:
    """trial:lazy, for containers that change things."""
    with registry.client() as client:
        push_trial(client)
    return "trial:lazy"


@pytest.fixture(scope="session")
def erofs(termination: None) -> str:
    """The erofs plane, where this machine can have it."""
    with scratch() as place:
        for name in ("root", "r"):
            (place / name).mkdir()
        found = probe(place / "root", place / "r")
    if not found.works:
        pytest.skip(f"this machine cannot have the erofs plane: {found.reason}")
    return "erofs"


@pytest.fixture(scope="session", params=PLANES)
def plane(request: pytest.FixtureRequest) -> str:
    """Each plane in turn."""
    if request.param == "erofs":
        request.getfixturevalue("erofs")
    return str(request.param)


@pytest.fixture(scope="session")
def whole_node(registry: Registry) -> Iterator[Node]:
    """A node without our snapshotter: the oracle."""
    with node(registry, snapshotter=WHOLE) as whole:
        yield whole


@pytest.fixture(scope="session")
def images_of_other_tools(registry: Registry, whole_node: Node) -> None:
    """torture:other and torture-readable:other and :other-zstd by ctr-remote, by-skopeo:torture-readable by skopeo."""
    ctr_remote = whole_node.ctr(program="ctr-remote")
    convert_elsewhere(ctr_remote, registry.host, "torture:plain", "torture:other")
    readable = "torture-readable"
    convert_elsewhere(ctr_remote, registry.host, f"{readable}:plain", f"{readable}:other")
    convert_elsewhere(ctr_remote, registry.host, f"{readable}:plain", f"{readable}:other-zstd", "--zstdchunked")
    push_with_skopeo(torture_image(BUILD / readable, readable=True), registry.host, f"by-skopeo:{readable}")


@pytest.fixture
def start_node(registry: Registry) -> Iterator[StartNode]:
    """Starts a fresh node with our snapshotter; its end is the test's."""
    with ExitStack() as undo:

        def start(
            settings: Table = QUIET,
            *,
            plane: str = "auto",
            round_trip_s: float = 0.0,
            disk: int = 0,
            environ: Mapping[str, str] | None = None,
        ) -> Node:
            made = node(registry, settings=settings, plane=plane, round_trip_s=round_trip_s, disk=disk, environ=environ)
            return undo.enter_context(made)

        yield start
