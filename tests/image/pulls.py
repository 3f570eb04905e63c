"""What the tests of pulling share: a containerd and a registry on loopback, images, and a pull between them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import trio

from snapshotter.config import RegistryConfig
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client
from snapshotter.containerd.introspection import check_containerd
from snapshotter.containerd.leases import new_id
from snapshotter.image.pull.pulling import Pulled, PullRequest, pull
from snapshotter.image.pull.rows import LayerRow
from snapshotter.registry.client import Registry
from snapshotter.registry.platform import Platform
from snapshotter.registry.reference import parse_reference
from snapshotter.registry.retry import RetryPolicy
from tests.doubles.containerd import containerd_at
from tests.doubles.containerd_state import FakeContainerd
from tests.doubles.registry import LoopbackRegistry
from tests.image.images import OCI_INDEX, Image

AMD64 = Platform("linux", "amd64")
TOC = {"containerd.io/snapshot/stargz/toc.digest": f"sha256:{'7' * 64}"}
TARS = tuple(bytes([number]) * 40_000 for number in (1, 2, 3, 4))


def an_image(lazy: Sequence[int] = (), tars: Sequence[bytes] = TARS) -> Image:
    """An image whose layers `lazy` (by number) look as if they could be lazy."""
    image = Image(*tars)
    for number in lazy:
        image.document["layers"][number]["annotations"] = dict(TOC)
    return image


def digests(image: Image) -> list[str]:
    """Digests of the layer blobs."""
    return [layer["digest"] for layer in image.document["layers"]]


def push_index(registry: LoopbackRegistry, images: dict[str, Image], tag: str = "v1") -> str:
    """Put an index of images by architecture into the registry; its digest."""
    entries: list[dict[str, Any]] = []
    for architecture, image in images.items():
        image.push(registry, architecture)
        entries.append({**image.manifest(), "platform": {"os": "linux", "architecture": architecture}})
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return registry.add_manifest(json.dumps(index).encode(), tag=tag, media_type=OCI_INDEX)


@dataclass
class Watched:
    """What a pull told."""

    rows: Sequence[LayerRow] = ()
    ends: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def begin(self, rows: Sequence[LayerRow]) -> None:
        self.rows = rows

    def ended(self, number: int, count: int, row: LayerRow) -> None:
        assert count == len(self.rows)
        self.ends.append(number)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


@dataclass
class World:
    """A containerd, its channel and a registry."""

    node: FakeContainerd
    registry: LoopbackRegistry
    channel: grpc.Channel
    address: Path
    namespace: str = "default"
    watched: Watched = field(default_factory=Watched)
    target: str = ""
    """Digest of what :v1 names, if that is not the image's own manifest."""

    def pull(self, suffix: str = ":v1", **more: Any) -> Pulled:
        """Pull; more than one word of a request may be changed."""
        return trio.run(lambda: self.pulling(suffix, **more))

    async def pulling(self, suffix: str = ":v1", **more: Any) -> Pulled:
        """The same inside a trio run."""
        words: dict[str, Any] = {
            "reference": parse_reference(self.registry.reference(suffix)),
            "platform": AMD64,
            "demanded": False,
            "snapshotter": check_containerd(self.channel, self.address, "estargz")[0],
            "daemon": None,
            "allow_unverified": False,
        }
        config = RegistryConfig(plain_http=(self.registry.host,))
        # Reading the machine's certificates takes longer than the pull.
        transport = httpx.AsyncHTTPTransport(verify=False)
        async with Registry(config, policy=RetryPolicy(1, first_s=0.001), transport=transport) as registry:
            client = Client(self.channel, self.address, self.namespace, new_id())
            return await pull(registry, client, PullRequest(**{**words, **more}), self.watched)

    def states(self) -> list[str]:
        """The layers' states as they were last told."""
        return [str(row.state) for row in self.watched.rows]

    def forget(self) -> None:
        """A node on which nothing was pulled."""
        node = self.node
        node.images.clear()
        node.leases.clear()
        node.collect()
        node.calls.clear()
        node.at_call = None
        assert (node.blobs, node.snapshots, node.ingests) == ({}, {}, {})

    def assert_whole(self, image: Image) -> None:
        """Everything of the image is there, and nothing else holds or waits for anything."""
        node, name = self.node, self.registry.reference(":v1")
        assert node.images[name].target.digest == (self.target or image.manifest()["digest"])
        assert (node.leases, node.active(), node.ingests) == ({}, [], {})
        node.collect()
        assert len(node.snapshots) == len(digests(image))
        lazy = {digest for digest in digests(image) if digest in node.lazy}
        assert set(digests(image)) & node.blobs.keys() == set(digests(image)) - lazy

    def assert_nothing(self) -> None:
        """No name, no lease, no active snapshot, and nothing that lies about."""
        node = self.node
        assert (node.images, node.leases, node.active()) == ({}, {}, [])
        node.collect()
        assert (node.blobs, node.snapshots, node.ingests) == ({}, {}, {})


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """A containerd without images, and an empty registry."""
    with (
        containerd_at(folder / "c", FakeContainerd()) as node,
        LoopbackRegistry() as registry,
        connected(folder / "c") as channel,
    ):
        yield World(node, registry, channel, folder / "c")
