"""A containerd in memory on a real socket: the services that a pull asks, leases and collection, and calls that fail on request.

It shares no code with the client. What it knows of containerd's rules is checked against the real one in
integration/test_image_pull.py.
"""

import gzip
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.protobuf.empty_pb2 import Empty

from snapshotter.api import content_pb2, diff_pb2, images_pb2, introspection_pb2, leases_pb2, snapshots_pb2, version_pb2
from snapshotter.api.content_pb2_grpc import ContentServicer, add_ContentServicer_to_server
from snapshotter.api.descriptor_pb2 import Descriptor
from snapshotter.api.diff_pb2_grpc import DiffServicer, add_DiffServicer_to_server
from snapshotter.api.images_pb2_grpc import ImagesServicer, add_ImagesServicer_to_server
from snapshotter.api.introspection_pb2_grpc import IntrospectionServicer, add_IntrospectionServicer_to_server
from snapshotter.api.leases_pb2_grpc import LeasesServicer, add_LeasesServicer_to_server
from snapshotter.api.mount_pb2 import Mount
from snapshotter.api.snapshots_pb2_grpc import SnapshotsServicer, add_SnapshotsServicer_to_server
from snapshotter.api.version_pb2_grpc import VersionServicer, add_VersionServicer_to_server
from tests.doubles.containerd_state import (
    LAYER,
    REF,
    REMOTE,
    Blob,
    Code,
    FakeContainerd,
    Part,
    Snapshot,
    refuse,
)

READ = 16 << 10
"""Bytes in a message of a blob that is read."""


class Leases(Part, LeasesServicer):
    def Create(self, request: leases_pb2.CreateRequest, context: grpc.ServicerContext) -> leases_pb2.CreateResponse:
        self.node.leases[request.id] = set()
        self.node.expiries[request.id] = request.labels["containerd.io/gc.expire"]
        return leases_pb2.CreateResponse(lease=leases_pb2.Lease(id=request.id))

    def Delete(self, request: leases_pb2.DeleteRequest, context: grpc.ServicerContext) -> Empty:
        if self.node.leases.pop(request.id, None) is None:
            refuse(context, Code.NOT_FOUND, f"lease {request.id}: not found")
        self.node.collect()
        return Empty()

    def AddResource(self, request: leases_pb2.AddResourceRequest, context: grpc.ServicerContext) -> Empty:
        if request.resource.type == "content":
            if request.resource.id not in self.node.blobs:
                refuse(context, Code.NOT_FOUND, f"content {request.resource.id}: not found")
            self.node.hold(context, f"content/{request.resource.id}")
            return Empty()
        assert request.resource.type == "snapshots/estargz"
        self.node.hold(context, f"snapshot/{request.resource.id}")
        return Empty()


class Images(Part, ImagesServicer):
    def Get(self, request: images_pb2.GetImageRequest, context: grpc.ServicerContext) -> images_pb2.GetImageResponse:
        if request.name not in self.node.images:
            refuse(context, Code.NOT_FOUND, f"image {request.name}: not found")
        return images_pb2.GetImageResponse(image=self.node.images[request.name])

    def Create(
        self, request: images_pb2.CreateImageRequest, context: grpc.ServicerContext
    ) -> images_pb2.CreateImageResponse:
        if request.image.name in self.node.images:
            refuse(context, Code.ALREADY_EXISTS, f"image {request.image.name}: already exists")
        self.node.images[request.image.name] = request.image
        return images_pb2.CreateImageResponse(image=request.image)

    def Update(
        self, request: images_pb2.UpdateImageRequest, context: grpc.ServicerContext
    ) -> images_pb2.UpdateImageResponse:
        image = self.node.images.get(request.image.name)
        if image is None:
            refuse(context, Code.NOT_FOUND, f"image {request.image.name}: not found")
        for path in request.update_mask.paths:
            if path == "target":
                image.target.CopyFrom(request.image.target)
            else:
                key = path.removeprefix("labels.")
                image.labels[key] = request.image.labels[key]
        return images_pb2.UpdateImageResponse(image=image)

    def Delete(self, request: images_pb2.DeleteImageRequest, context: grpc.ServicerContext) -> Empty:
        if self.node.images.pop(request.name, None) is None:
            refuse(context, Code.NOT_FOUND, f"image {request.name}: not found")
        self.node.collect()
        return Empty()


class Content(Part, ContentServicer):
    def Read(
        self, request: content_pb2.ReadContentRequest, context: grpc.ServicerContext
    ) -> Iterator[content_pb2.ReadContentResponse]:
        data = self._blob(request.digest, context).data
        end = request.offset + request.size if request.size else len(data)
        if end > len(data):
            refuse(context, Code.OUT_OF_RANGE, f"read past object length {len(data)} bytes")
        return iter(
            content_pb2.ReadContentResponse(offset=at, data=data[at : min(at + READ, end)])
            for at in range(request.offset, end, READ)
        )

    def Info(self, request: content_pb2.InfoRequest, context: grpc.ServicerContext) -> content_pb2.InfoResponse:
        blob = self._blob(request.digest, context)
        info = content_pb2.Info(digest=request.digest, size=len(blob.data), labels=blob.labels)
        return content_pb2.InfoResponse(info=info)

    def Update(self, request: content_pb2.UpdateRequest, context: grpc.ServicerContext) -> content_pb2.UpdateResponse:
        blob = self._blob(request.info.digest, context)
        for path in request.update_mask.paths:
            key = path.removeprefix("labels.")
            blob.labels[key] = request.info.labels[key]
        return content_pb2.UpdateResponse(info=request.info)

    def Status(self, request: content_pb2.StatusRequest, context: grpc.ServicerContext) -> content_pb2.StatusResponse:
        if request.ref not in self.node.ingests:
            refuse(context, Code.NOT_FOUND, f"reference {request.ref}: not found")
        status = content_pb2.Status(ref=request.ref, offset=len(self.node.ingests[request.ref]))
        return content_pb2.StatusResponse(status=status)

    def Abort(self, request: content_pb2.AbortRequest, context: grpc.ServicerContext) -> Empty:
        if self.node.ingests.pop(request.ref, None) is None:
            refuse(context, Code.NOT_FOUND, f"reference {request.ref}: not found")
        return Empty()

    def Write(
        self, requests: Iterator[content_pb2.WriteContentRequest], context: grpc.ServicerContext
    ) -> Iterator[content_pb2.WriteContentResponse]:
        node = self.node
        first = next(requests)
        with node.lock:
            if first.expected in node.blobs:
                node.hold(context, f"content/{first.expected}")
                refuse(context, Code.ALREADY_EXISTS, f"content {first.expected}: already exists")
            if first.ref in node.locked:
                refuse(context, Code.UNAVAILABLE, f"ref {first.ref} locked for 1s (since now): unavailable")
            node.hold(context, f"ingest/{first.ref}")
            node.ingests.setdefault(first.ref, bytearray())
            node.locked.add(first.ref)
        try:
            yield self._take(first, first.ref, context)
            for request in requests:
                fate = node.fate_of(f"Content.{content_pb2.WriteAction.Name(request.action)}")
                if isinstance(fate, Code):
                    refuse(context, fate, "as the test wants it")
                answer = self._take(request, first.ref, context)
                if fate is not None:
                    refuse(context, fate[0], "as the test wants it, after the work")
                yield answer
                if request.action == content_pb2.COMMIT:
                    return
        finally:
            with node.lock:
                node.locked.discard(first.ref)

    def _take(
        self, request: content_pb2.WriteContentRequest, ref: str, context: grpc.ServicerContext
    ) -> content_pb2.WriteContentResponse:
        with self.node.lock:
            written = self.node.ingests.setdefault(ref, bytearray())
            if request.action != content_pb2.STAT:
                if request.offset not in (0, len(written)):
                    refuse(context, Code.OUT_OF_RANGE, f"write @{request.offset} must occur at {len(written)}")
                del written[request.offset :]
                written += request.data
            if request.action == content_pb2.COMMIT:
                digest = f"sha256:{hashlib.sha256(written).hexdigest()}"
                if (digest, len(written)) != (request.expected, request.total):
                    refuse(context, Code.FAILED_PRECONDITION, f"unexpected commit digest {digest}")
                if digest in self.node.blobs:
                    refuse(context, Code.ALREADY_EXISTS, f"content {digest}: already exists")
                self.node.blobs[digest] = Blob(bytes(self.node.ingests.pop(ref)), dict(request.labels))
                self.node.hold(context, f"content/{digest}")
            return content_pb2.WriteContentResponse(action=request.action, offset=len(written))

    def _blob(self, digest: str, context: grpc.ServicerContext) -> Blob:
        if digest not in self.node.blobs:
            refuse(context, Code.NOT_FOUND, f"content {digest}: not found")
        return self.node.blobs[digest]


class Snapshots(Part, SnapshotsServicer):
    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        snapshots = self.node.snapshots
        assert re.fullmatch(r"extract-\d{1,9}-[\w-]{4} sha256:[0-9a-f]{64}", request.key)
        if request.parent and (request.parent not in snapshots or snapshots[request.parent].active):
            refuse(context, Code.NOT_FOUND, f"parent snapshot {request.parent} does not exist: not found")
        target = request.labels[REF]
        if target in snapshots or request.labels[LAYER] in self.node.lazy:
            snapshots.setdefault(target, Snapshot(request.parent, dict(request.labels), active=False, remote=True))
            self.node.hold(context, f"snapshot/{target}")
            refuse(context, Code.ALREADY_EXISTS, f"target snapshot {target}: already exists")
        self.node.hold(context, f"snapshot/{request.key}")
        snapshots[request.key] = Snapshot(request.parent, dict(request.labels), active=True)
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[Mount(type="bind", source=request.key)])

    def Commit(self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        snapshots = self.node.snapshots
        if request.name in snapshots:
            refuse(context, Code.ALREADY_EXISTS, f"snapshot {request.name}: already exists")
        if request.key not in snapshots:
            refuse(context, Code.NOT_FOUND, f"snapshot {request.key}: not found")
        one = snapshots.pop(request.key)
        snapshots[request.name] = Snapshot(one.parent, dict(request.labels), active=False, filled=one.filled)
        self.node.hold(context, f"snapshot/{request.name}")
        return Empty()

    def Remove(self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        if self.node.snapshots.pop(request.key, None) is None:
            refuse(context, Code.NOT_FOUND, f"snapshot {request.key}: not found")
        return Empty()

    def Stat(
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        assert request.snapshotter == "estargz"
        if request.key not in self.node.snapshots:
            refuse(context, Code.NOT_FOUND, f"snapshot {request.key}: not found")
        one = self.node.snapshots[request.key]
        labels = {**one.labels, REMOTE: "remote snapshot"} if one.remote else one.labels
        return snapshots_pb2.StatSnapshotResponse(info=snapshots_pb2.Info(name=request.key, labels=labels))


class Diff(Part, DiffServicer):
    def Apply(self, request: diff_pb2.ApplyRequest, context: grpc.ServicerContext) -> diff_pb2.ApplyResponse:
        blob = self.node.blobs.get(request.diff.digest)
        if blob is None:
            refuse(context, Code.NOT_FOUND, f"content {request.diff.digest}: not found")
        plain = gzip.decompress(blob.data) if blob.data.startswith(b"\x1f\x8b") else blob.data
        diff_id = self.node.applied(f"sha256:{hashlib.sha256(plain).hexdigest()}")
        self.node.snapshots[request.mounts[0].source].filled = diff_id
        return diff_pb2.ApplyResponse(applied=Descriptor(digest=diff_id, size=len(plain)))


class Introspection(IntrospectionServicer):
    def __init__(self, node: FakeContainerd) -> None:
        self.node = node

    def Plugins(
        self, request: introspection_pb2.PluginsRequest, context: grpc.ServicerContext
    ) -> introspection_pb2.PluginsResponse:
        return introspection_pb2.PluginsResponse(plugins=self.node.plugins)


class Version(VersionServicer):
    def __init__(self, node: FakeContainerd) -> None:
        self.node = node

    def Version(self, request: Empty, context: grpc.ServicerContext) -> version_pb2.VersionResponse:
        return version_pb2.VersionResponse(version=self.node.version)


@contextmanager
def containerd_at(address: Path, node: FakeContainerd) -> Iterator[FakeContainerd]:
    """Serve `node` on a socket until the block ends."""
    server = grpc.server(ThreadPoolExecutor(16))
    for part, add in (
        (Leases(node), add_LeasesServicer_to_server),
        (Images(node), add_ImagesServicer_to_server),
        (Content(node), add_ContentServicer_to_server),
        (Snapshots(node), add_SnapshotsServicer_to_server),
        (Diff(node), add_DiffServicer_to_server),
        (Introspection(node), add_IntrospectionServicer_to_server),
        (Version(node), add_VersionServicer_to_server),
    ):
        add(part, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{address}")
    server.start()
    try:
        yield node
    finally:
        server.stop(None).wait()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Return as soon as `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
