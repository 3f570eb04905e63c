"""A containerd in memory with images, for the tests of places."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter.api.descriptor_pb2 import Descriptor as ContainerdDescriptor
from snapshotter.api.images_pb2 import Image as Record
from snapshotter.image.labels import children_labels
from snapshotter.image.places.opening import Access
from snapshotter.registry.manifest import parse_manifest
from tests.doubles.containerd import containerd_at
from tests.doubles.containerd_state import Blob, FakeContainerd
from tests.image.images import Image
from tests.image.places import access

SOURCE = "containerd.io/distribution.source.127.0.0.1"


class There:
    """A containerd and how to reach it."""

    def __init__(self, node: FakeContainerd, how: Access) -> None:
        self.node = node
        self.how = how

    def have(self, image: Image, name: str, *, without: tuple[str, ...] = (), source: str = "") -> None:
        """Let there be an image, but for some blobs; `source` is the repository that its labels name."""
        top = image.manifest()
        for digest, data in image.blobs.items():
            if digest not in without:
                self.node.blobs[digest] = Blob(data, {SOURCE: source} if source else {})
        labels = children_labels(parse_manifest(image.blobs[top["digest"]], top["mediaType"]))
        if top["digest"] in self.node.blobs:
            self.node.blobs[top["digest"]].labels.update(labels)
        target = ContainerdDescriptor(media_type=top["mediaType"], digest=top["digest"], size=top["size"])
        self.node.images[name] = Record(name=name, target=target)

    def assert_nothing(self) -> None:
        """No name, no lease, and nothing that lies about."""
        assert (self.node.images, self.node.leases) == ({}, {})
        self.node.collect()
        assert (self.node.blobs, self.node.ingests) == ({}, {})


@contextmanager
def store(folder: Path) -> Iterator[There]:
    """A containerd without images."""
    with containerd_at(folder / "c", FakeContainerd()) as node:
        yield There(node, access(folder / "c", namespace="k8s.io"))


def layers_of(image: Image) -> list[str]:
    return [layer["digest"] for layer in image.document["layers"]]
