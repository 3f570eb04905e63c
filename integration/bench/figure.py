"""What a benchmark measures, what is asked of it, and how the images get to both sides."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.harness.daemon import Table
from integration.harness.node import LAZY, PAUSE, WHOLE, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.convert import convert
from integration.images.oci import Image
from integration.images.sample import pause_image

BUILD = Path(__file__).parent.parent.parent / "build" / "images"
# Nothing but what is measured runs, and a nearly full disk does not evict it.
QUIET: Table = {"fetch": {"background": False}, "cache": {"min_free": 0}}
# Everything is fetched at once.
FILLING: Table = {"fetch": {"background": True, "background_delay_s": 0}, "cache": {"min_free": 0}}
FILL_TIMEOUT_S = 900
EROFS, FUSE = "erofs", "fuse"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result: what, the bound as people say it, what came out, and whether it is inside the bound."""

    what: str
    asked: str
    measured: str
    met: bool | None
    """None where nothing is asked."""
    detail: str = ""


def push_lazy(registry: Registry, image: Image, name: str, version: str = "") -> None:
    """Put an image into the registry as `name`:plain and, converted, as `name`:lazy; and the pause image.

    `version` is appended to both tags. An image that another figure has put there already stays.
    """
    with registry.client() as client:
        if client.has(name, f"lazy{version}"):
            return
        pause_image(BUILD / "pause").push(client, PAUSE)
        image.push(client, f"{name}:plain{version}")
    convert(registry.host, f"{name}:plain{version}", f"{name}:lazy{version}")


@contextmanager
def fetched_node(registry: Registry, *names: str, plane: str = EROFS) -> Iterator[Node]:
    """A node that has every file of these images."""
    with node(registry, settings=FILLING, plane=plane) as lazy:
        running = lazy.daemon.json("status")["plane"]
        if running != plane:
            message = f"this machine runs the {running} plane, so that no figure of the {plane} plane can be measured"
            raise RuntimeError(message)
        for name in names:
            lazy.pull(name)
            until_complete(lazy, name)
        yield lazy


def until_complete(lazy: Node, name: str) -> None:
    """Wait until every layer of a pulled image is on the node."""

    def complete() -> bool:
        return set(lazy.layer_states(name)) == {"complete"}

    wait_for(complete, f"the end of fetching {name}", FILL_TIMEOUT_S)


@contextmanager
def unpacked(registry: Registry, name: str) -> Iterator[Path]:
    """An image as overlayfs shows it after containerd unpacked it."""
    with node(registry, snapshotter=WHOLE) as whole:
        whole.pull_whole(name)
        with whole.view(name, namespace="default") as native:
            yield native


@contextmanager
def side_by_side(registry: Registry, name: str, plane: str) -> Iterator[tuple[Path, Path]]:
    """The same image unpacked, and mounted lazily after all of it was fetched; both under an overlay."""
    with ExitStack() as stay:
        native = stay.enter_context(unpacked(registry, name))
        lazy = stay.enter_context(fetched_node(registry, name, plane=plane))
        yield native, stay.enter_context(lazy.view(name, snapshotter=LAZY))
