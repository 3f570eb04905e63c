"""A layer room over a registry in memory: what the tests of this folder stand in."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import trio
import trio.testing

from snapshotter.config import CacheConfig, Config, FetchConfig, LazyConfig
from snapshotter.layer.layer import Layer
from snapshotter.layer.room import LayerRoom, assemble
from snapshotter.layer.sources import RegistryAccess
from snapshotter.request import LayerRequest
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.identity import large_name
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State
from tests.doubles.layers import BuiltLayer
from tests.doubles.memory_registry import MemoryRegistry

T = TypeVar("T")
IMAGE = "registry.test/app:1"

QUIET = Config(
    fetch=FetchConfig(on_outage="error", prefetch=False, background=False, demand_window=0),
    cache=CacheConfig(min_free=0),
    lazy=LazyConfig(resolve_timeout_s=20.0),
)
"""A configuration in which nothing happens by itself."""


@dataclass
class World:
    """The parts, and short ways to use them."""

    room: LayerRoom
    registry: MemoryRegistry
    state: State
    store: ObjectStore
    root: Path
    nursery: trio.Nursery
    layers: dict[str, Layer] = field(default_factory=dict)

    async def pull(self, *built: BuiltLayer, tag: str = "1", label: str | None = None) -> list[Layer]:
        """Push an image of these layers and resolve each as containerd would ask."""
        manifest = self.registry.add_image(tag, [(layer.blob, dict(layer.annotations)) for layer in built])
        wanted = [request(layer, manifest.digest, tag=tag, label=label) for layer in built]
        return [await self.room.resolve(one) for one in wanted]

    async def read(self, layer: Layer, path: str, offset: int = 0, size: int = 1 << 30) -> bytes:
        """The bytes of a file."""
        return bytes(await layer.read(find(layer, path), offset, size))


def find(layer: Layer, path: str) -> int:
    """The node of a path."""
    node = 0
    for name in path.encode().split(b"/"):
        child = layer.index.lookup(node, name)
        assert child is not None, path
        node = child
    return node


def content_name(layer: Layer, path: str) -> str:
    """The name under which an overlay asks for a file's content."""
    identity = layer.index.identity(find(layer, path))
    return large_name(identity) if len(identity.chunks) > 1 else identity.digest.hex()


def content_path(it: World, name: str, top: str = "objects", domain: str = "node") -> Path:
    """Where an overlay looks for the content of that name."""
    return it.root / top / it.store.place / domain / name[:2] / name


def request(
    built: BuiltLayer,
    manifest_digest: str | None,
    *,
    tag: str = "1",
    label: str | None = None,
    name: str = "registry.test/app",
) -> LayerRequest:
    """What the service makes of containerd's labels."""
    return LayerRequest(
        namespace="k8s.io",
        reference=f"{name}:{tag}",
        manifest_digest=manifest_digest,
        layer_digest=built.digest,
        image_layers=(built.digest,),
        toc_digest=label,
        prefetch_size=None,
        skip_verify=False,
        trusted_only=manifest_digest is not None,
    )


@asynccontextmanager
async def world(
    root: Path, registry: MemoryRegistry, config: Config = QUIET, *, with_metadata_images: bool = False
) -> AsyncIterator[World]:
    """A started room; everything is closed at the end."""
    config = replace(config, root=root)
    os.makedirs(root, exist_ok=True)
    state = State(root / "state.db")
    store = ObjectStore(root, CacheDB(root / "cache.db"), config.cache)
    try:
        async with trio.open_nursery() as nursery:
            access = RegistryAccess()
            room = assemble(
                nursery,
                config,
                root,
                state,
                store,
                access,
            )
            access.give(registry)  # type: ignore[arg-type]
            room.images.with_metadata_images = with_metadata_images
            await room.restore()
            room.start(nursery)
            yield World(room, registry, state, store, root, nursery)
            nursery.cancel_scope.cancel()
    finally:
        store.close()
        state.close()


async def until(condition: Callable[[], object]) -> None:
    """Return when something that threads and files decide has come about; `run` bounds it."""
    while not condition():  # noqa: ASYNC110 (nobody sets an event)
        await trio.sleep(0.01)


def run(main: Callable[[], Awaitable[T]], clock: trio.abc.Clock | None = None) -> T:
    """Run a test's coroutine; a test that hangs fails."""

    async def bounded() -> T:
        with trio.fail_after(30):
            return await main()

    return trio.run(bounded, clock=clock)
