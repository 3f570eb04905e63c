"""What a benchmark measures and what is asked of it."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.harness.daemon import Table
from integration.harness.node import LAZY, PAUSE, WHOLE, Node, node
from integration.harness.registry import Registry
from integration.images.convert import convert
from integration.images.oci import Image
from integration.images.sample import pause_image

BUILD = Path(__file__).parent.parent.parent / "build" / "images"
ROUNDS = 5
# Nothing but what is measured runs, and a nearly full disk does not evict it.
QUIET: Table = {"fetch": {"background": False}, "cache": {"min_free": 0}}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result: what, the bound as people say it, what came out, and whether it is inside the bound."""

    what: str
    asked: str
    measured: str
    met: bool
    detail: str = ""


def push_lazy(registry: Registry, image: Image, name: str) -> None:
    """Put an image into the registry as `name`:plain and, converted, as `name`:lazy; and the pause image.

    An image that another figure has put there already stays.
    """
    with registry.client() as client:
        if client.has(name, "lazy"):
            return
        pause_image(BUILD / "pause").push(client, PAUSE)
        image.push(client, f"{name}:plain")
    convert(registry.host, f"{name}:plain", f"{name}:lazy")


@contextmanager
def side_by_side(registry: Registry, name: str) -> Iterator[tuple[Path, Path, Node]]:
    """The same image unpacked on the local file system and mounted lazily, both under an overlay; and the lazy node."""
    with node(registry, snapshotter=WHOLE) as whole, node(registry, snapshotter=LAZY, settings=QUIET) as lazy:
        whole.pull_whole(f"{name}:lazy")
        lazy.pull(f"{name}:lazy")
        with whole.view(f"{name}:lazy", namespace="default") as native, lazy.view(f"{name}:lazy") as mounted:
            yield native, mounted, lazy


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def alternate(
    native: Callable[[], float], lazy: Callable[[], float], before: Callable[[], object] = bool, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Medians of both, measured in turns so that what else the machine does meets both alike."""
    one, other = [], []
    for _ in range(rounds):
        before()
        one.append(native())
        before()
        other.append(lazy())
    return statistics.median(one), statistics.median(other)
