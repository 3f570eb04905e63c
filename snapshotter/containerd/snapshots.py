"""Snapshots by way of containerd, which records them and passes what it must to the snapshotter; and unpacking into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from google.protobuf.empty_pb2 import Empty

from snapshotter.api.descriptor_pb2 import Descriptor
from snapshotter.api.diff_pb2 import ApplyRequest
from snapshotter.api.diff_pb2_grpc import DiffStub
from snapshotter.api.mount_pb2 import Mount
from snapshotter.api.snapshots_pb2 import (
    CommitSnapshotRequest,
    PrepareSnapshotRequest,
    RemoveSnapshotRequest,
    StatSnapshotRequest,
    ViewSnapshotRequest,
)
from snapshotter.api.snapshots_pb2_grpc import SnapshotsStub
from snapshotter.api.version_pb2_grpc import VersionStub
from snapshotter.containerd import leases
from snapshotter.containerd.client import TIMEOUT_S, Client
from snapshotter.errors import ContainerdError, ContainerdUnfit, ContainerdUnreachable, NotFound, SnapshotterError

PREPARE_TIMEOUT_S = 300.0
"""A snapshotter that asks a registry first takes half of it at most; containerd's own pulls allow as much."""

APPLY_TIMEOUT_S = 3600.0

REDIAL_S = 4.0
"""containerd dials a snapshotter that was away again after 3 s at most, and refuses until then. Source: its proxy plugins."""

REDIAL_PAUSE_S = 0.2
_NOT_SENT = "while dialing"

REMOTE = "containerd.io/snapshot/remote"
"""Our daemon's and others' mark of a snapshot that was never unpacked."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed snapshot; `remote`: its content was never unpacked on this node."""

    name: str
    remote: bool


class Snapshots:
    """The snapshotter `name` of one containerd."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._stub = SnapshotsStub(client.channel)  # type: ignore[no-untyped-call]

    async def committed(self, name: str) -> Committed | None:
        """The committed snapshot `name`, held by the lease from now on; None if there is none."""
        if await self.stat(name) is None:
            return None
        await leases.hold_snapshot(self._client, self.name, name)
        return await self.stat(name)  # again: it may have been collected before it was held

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Mount]:
        """The mounts of a new active snapshot.

        Raises:
            AlreadyExists: the snapshot that the labels name may be there, see `committed`.
            ContainerdError: it refused, or the snapshotter does not answer it.
        """
        request = PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        answer = await self._call(self._stub.Prepare, request, PREPARE_TIMEOUT_S)
        return list(answer.mounts)

    async def view(self, key: str, parent: str) -> Sequence[Mount]:
        """The mounts of a new read-only snapshot of a committed one. Raises ContainerdError: it refused."""
        request = ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent)
        answer = await self._call(self._stub.View, request, PREPARE_TIMEOUT_S)
        return list(answer.mounts)

    async def apply(self, blob: Descriptor, mounts: Sequence[Mount]) -> str:
        """Unpack a blob of the content store; the digest of what was unpacked, decompressed.

        Raises:
            ContainerdError: it could not.
        """
        stub = DiffStub(self._client.channel)  # type: ignore[no-untyped-call]
        request = ApplyRequest(diff=blob, mounts=mounts)
        try:
            answer = await self._client.call(stub.Apply, request, APPLY_TIMEOUT_S)
        except ContainerdUnreachable:
            raise
        except SnapshotterError as error:
            raise ContainerdError(f"layer {blob.digest} ({blob.media_type}) could not be unpacked: {error}") from error
        return str(answer.applied.digest)

    async def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Turn an active snapshot into a committed one.

        Raises:
            AlreadyExists: somebody was faster; the active one is still there.
        """
        request = CommitSnapshotRequest(snapshotter=self.name, name=name, key=key, labels=labels)
        await self._call(self._stub.Commit, request)

    async def remove(self, key: str) -> None:
        """Remove a snapshot if it is there."""
        try:
            await self._call(self._stub.Remove, RemoveSnapshotRequest(snapshotter=self.name, key=key))
        except NotFound:
            return

    async def stat(self, name: str) -> Committed | None:
        """The committed snapshot `name`, which nothing holds; None if there is none."""
        try:
            answer = await self._call(self._stub.Stat, StatSnapshotRequest(snapshotter=self.name, key=name))
        except NotFound:
            return None
        return Committed(answer.info.name, bool(answer.info.labels.get(REMOTE)))

    async def _call(self, method: Any, request: object, timeout_s: float = TIMEOUT_S) -> Any:
        give_up = trio.current_time() + REDIAL_S
        while True:
            try:
                return await self._client.call(method, request, timeout_s)
            except ContainerdUnreachable as error:
                # The snapshotter's absence and containerd's own arrive as the same code.
                version = VersionStub(self._client.channel)  # type: ignore[no-untyped-call]
                await self._client.call(version.Version, Empty())
                # A daemon that was started a moment ago may answer before containerd knows; nothing was asked of it yet.
                if _NOT_SENT not in str(error) or trio.current_time() > give_up:
                    raise ContainerdError(
                        f"containerd's snapshotter {self.name} does not answer: start it "
                        f"(systemctl start estargz-snapshotter); {error}"
                    ) from error
            except ContainerdUnfit as error:
                raise ContainerdUnfit(f"snapshotter {self.name}: {error}") from error
            await trio.sleep(REDIAL_PAUSE_S)
