"""containerd's snapshots service over gRPC: protobuf in and out, errors to statuses, and nothing else."""

# ruff: noqa: N802, ARG002 (names and arguments of the servicer's methods are gRPC's)

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import grpc
from google.protobuf.empty_pb2 import Empty

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api import snapshots_pb2_grpc as pb_grpc
from snapshotter.api.mount_pb2 import Mount as MountMessage
from snapshotter.errors import Reason, SnapshotterError, Status
from snapshotter.service.cleanup import Cleanup
from snapshotter.service.labels import SNAPSHOT_REF
from snapshotter.service.mounts import Mount
from snapshotter.service.remote import RemotePrepare, RemoteRequest
from snapshotter.service.snapshots import Snapshots
from snapshotter.store.state_snapshots import SnapshotRecord

_log = logging.getLogger(__name__)

_STATUSES = {code.value[0]: code for code in grpc.StatusCode}
# As many as containerd's own server sends at once.
_INFOS_PER_MESSAGE = 100
_NAMESPACE = "containerd-namespace"
_BILLION = 10**9


class SnapshotsServicer(pb_grpc.SnapshotsServicer):
    """The ten calls. The request's `snapshotter`, containerd's name for this plugin, is not looked at: one store."""

    def __init__(self, snapshots: Snapshots, remote: RemotePrepare, cleanup: Cleanup) -> None:
        self._snapshots = snapshots
        self._remote = remote
        self._cleanup = cleanup

    def Prepare(self, request: pb.PrepareSnapshotRequest, context: grpc.ServicerContext) -> pb.PrepareSnapshotResponse:
        """An active snapshot, or with a target a lazy one (AlreadyExists)."""
        with _answering(context, "Prepare", request.key):
            labels = dict(request.labels)
            if labels.get(SNAPSHOT_REF):
                wanted = RemoteRequest(
                    _namespace(context), request.key, request.parent, labels, context.time_remaining()
                )
                mounts = self._prepare_remote(wanted)
            else:
                mounts = self._snapshots.prepare(request.key, request.parent, labels)
            return pb.PrepareSnapshotResponse(mounts=_messages(mounts))

    def View(self, request: pb.ViewSnapshotRequest, context: grpc.ServicerContext) -> pb.ViewSnapshotResponse:
        """A read-only snapshot."""
        with _answering(context, "View", request.key):
            mounts = self._snapshots.view(request.key, request.parent, dict(request.labels))
            return pb.ViewSnapshotResponse(mounts=_messages(mounts))

    def Mounts(self, request: pb.MountsRequest, context: grpc.ServicerContext) -> pb.MountsResponse:
        """The mounts of an active snapshot or a view."""
        with _answering(context, "Mounts", request.key):
            return pb.MountsResponse(mounts=_messages(self._snapshots.mounts(request.key)))

    def Commit(self, request: pb.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Active to committed; fast, since containerd's metadata waits for it."""
        with _answering(context, "Commit", request.key):
            self._snapshots.commit(request.name, request.key, dict(request.labels), request.parent)
            return Empty()

    def Remove(self, request: pb.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        """Forget a snapshot without children."""
        with _answering(context, "Remove", request.key):
            self._snapshots.remove(request.key)
            return Empty()

    def Stat(self, request: pb.StatSnapshotRequest, context: grpc.ServicerContext) -> pb.StatSnapshotResponse:
        """The Info of one snapshot."""
        with _answering(context, "Stat", request.key):
            return pb.StatSnapshotResponse(info=_info(self._snapshots.stat(request.key)))

    def Update(self, request: pb.UpdateSnapshotRequest, context: grpc.ServicerContext) -> pb.UpdateSnapshotResponse:
        """Change labels."""
        with _answering(context, "Update", request.info.name):
            record = self._snapshots.update(
                request.info.name, dict(request.info.labels), list(request.update_mask.paths)
            )
            return pb.UpdateSnapshotResponse(info=_info(record))

    def List(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        """The Infos of all snapshots, as they were when the call came: the client calls Stat while it reads."""
        with _answering(context, "List", ""):
            for batch in _batches(self._snapshots.walk(list(request.filters))):
                yield pb.ListSnapshotsResponse(info=[_info(record) for record in batch])

    def Usage(self, request: pb.UsageRequest, context: grpc.ServicerContext) -> pb.UsageResponse:
        """Bytes and inodes without the parents'."""
        with _answering(context, "Usage", request.key):
            size, inodes = self._snapshots.usage(request.key)
            return pb.UsageResponse(size=size, inodes=inodes)

    def Cleanup(self, request: pb.CleanupRequest, context: grpc.ServicerContext) -> Empty:
        """Delete what Remove has left behind."""
        with _answering(context, "Cleanup", ""):
            self._cleanup.run()
            return Empty()

    def register(self, server: grpc.Server) -> None:
        """Let `server` answer these calls."""
        pb_grpc.add_SnapshotsServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def _prepare_remote(self, wanted: RemoteRequest) -> tuple[Mount, ...]:
        try:
            return self._remote.prepare(wanted)
        except SnapshotterError:
            raise
        except Exception as error:  # noqa: BLE001 (logged with its traceback, and answered)
            # A bug on the way to a lazy layer must not fail the pull: the image can still be unpacked.
            _log.exception("Prepare of %r for target %r failed", wanted.key, wanted.target)
            return self._remote.fall_back(wanted, Reason.INTERNAL, f"{type(error).__name__}: {error}")


@contextmanager
def _answering(context: grpc.ServicerContext, call: str, key: str) -> Iterator[None]:
    """Answer errors as gRPC statuses: one of the three doors."""
    try:
        yield
    except SnapshotterError as error:
        # NotFound, AlreadyExists and the like are answers that containerd works with; the daemon's own are for people.
        level = logging.WARNING if error.status in (Status.INTERNAL, Status.RESOURCE_EXHAUSTED) else logging.DEBUG
        _log.log(level, "%s %r: %s", call, key, error)
        context.abort(_STATUSES[error.status], _printable(str(error)))
    except TimeoutError as error:
        _log.warning("%s %r: %s", call, key, error)
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, _printable(str(error)))
    except Exception as error:  # noqa: BLE001 (a bug ends one call, not the service)
        _log.exception("%s %r failed", call, key)
        context.abort(grpc.StatusCode.UNKNOWN, _printable(f"{call} failed: {type(error).__name__}: {error}"))


def _namespace(context: grpc.ServicerContext) -> str:
    """The namespace containerd works for; "" in calls of its garbage collection."""
    for key, value in context.invocation_metadata():
        if key == _NAMESPACE:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""


def _messages(mounts: Iterable[Mount]) -> list[MountMessage]:
    return [MountMessage(type=mount.type, source=mount.source, options=mount.options) for mount in mounts]


def _info(record: SnapshotRecord) -> pb.Info:
    info = pb.Info(name=record.key, parent=record.parent, kind=record.kind.name, labels=record.labels)
    info.created_at.seconds, info.created_at.nanos = divmod(record.created_ns, _BILLION)
    info.updated_at.seconds, info.updated_at.nanos = divmod(record.updated_ns, _BILLION)
    return info


def _batches(records: Iterable[SnapshotRecord]) -> Iterator[list[SnapshotRecord]]:
    iterator = iter(records)
    while batch := list(islice(iterator, _INFOS_PER_MESSAGE)):
        yield batch


def _printable(text: str) -> str:
    """A status message is UTF-8 on the wire; a path or a header need not be."""
    return text.encode("utf-8", "backslashreplace").decode()
