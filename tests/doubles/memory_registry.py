"""A registry in memory for tests of the layer room: blobs and manifests, and faults by request."""

import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from snapshotter.errors import BlobMissing, RegistryUnreachable, SnapshotterError
from snapshotter.registry.manifest import OCI_MANIFEST, Manifest
from snapshotter.registry.reference import Reference

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PIECE = 16 << 10


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Request:
    """One range request that was made."""

    digest: str
    start: int
    length: int
    name: str = ""


class MemoryBlob:
    """Stands in for registry.blob.Blob."""

    def __init__(self, registry: "MemoryRegistry", ref: Reference, digest: str, size: int) -> None:
        self.registry = registry
        self.host = self.serving = ref.host
        self.name = ref.name
        self.digest = digest
        self.size = size

    def forget_redirects(self) -> None:
        self.registry.distrusted.append(self.name)

    async def read_range(self, start: int, length: int) -> bytes:
        async with self.open_range(start, length) as body:
            return b"".join([piece async for piece in body])

    @asynccontextmanager
    async def open_range(self, start: int, length: int) -> AsyncIterator[AsyncIterator[bytes]]:
        yield self._pieces(start, length)

    async def _pieces(self, start: int, length: int) -> AsyncIterator[bytes]:
        registry = self.registry
        registry.requests.append(Request(self.digest, start, length, self.name))
        await trio.lowlevel.checkpoint()
        if registry.hold is not None:
            await registry.hold.wait()
        if self.host in registry.away or self.digest in registry.stuck:
            raise RegistryUnreachable(f"{self.host} does not answer")
        if self.name in registry.removed:
            raise BlobMissing(f"{self.name} has no blob {self.digest}")
        if registry.faults:
            fault = registry.faults.popleft()
            if isinstance(fault, SnapshotterError):
                raise fault
            data = fault(registry.blobs[self.digest])
        elif self.digest in registry.blobs:
            data = registry.blobs[self.digest]
        else:
            raise BlobMissing(f"blob {self.digest} is not here")
        assert start + length <= len(data)
        for at in range(start, start + length, PIECE):
            await trio.lowlevel.checkpoint()
            yield data[at : min(at + PIECE, start + length)]


@dataclass
class MemoryRegistry:
    """Stands in for registry.client.Registry. `faults` are consumed one a range request: an error, or a change of bytes."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    manifest_requests: int = 0
    connections_ahead: int = 0
    faults: deque[SnapshotterError | Callable[[bytes], bytes]] = field(default_factory=deque)
    hold: trio.Event | None = None
    away: set[str] = field(default_factory=set)
    """Hosts that do not answer requests for blobs."""
    stuck: set[str] = field(default_factory=set)
    """Blobs that are not answered, though their host is there."""
    removed: set[str] = field(default_factory=set)
    """Repositories (`host/path`) that lost their blobs."""
    distrusted: list[str] = field(default_factory=list)
    """Repositories whose redirects were forgotten."""

    def add_image(self, tag: str, layers: list[tuple[bytes, dict[str, str]]], media_type: str = GZIP_LAYER) -> Manifest:
        """Push an image of these blobs with these annotations."""
        for blob, _ in layers:
            self.blobs[digest_of(blob)] = blob
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest_of(b"{}"),
                "size": 2,
            },
            "layers": [
                {"mediaType": media_type, "digest": digest_of(blob), "size": len(blob), "annotations": annotations}
                for blob, annotations in layers
            ],
        }
        raw = json.dumps(document).encode()
        manifest = Manifest(raw, OCI_MANIFEST, digest_of(raw))
        self.manifests[tag] = self.manifests[manifest.digest] = manifest
        return manifest

    async def manifest(self, ref: Reference, digest: str | None = None) -> Manifest:
        self.manifest_requests += 1
        await trio.lowlevel.checkpoint()
        if self.faults and isinstance(self.faults[0], SnapshotterError):
            raise self.faults.popleft()  # type: ignore[misc]
        try:
            return self.manifests[digest or ref.selector]
        except KeyError:
            raise BlobMissing(f"no manifest {ref}") from None

    async def open_connections(self, ref: Reference, count: int) -> None:
        self.connections_ahead += count

    def blob(self, ref: Reference, digest: str, size: int) -> MemoryBlob:
        return MemoryBlob(self, ref, digest, size)
