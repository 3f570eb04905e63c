"""The control service: what the commands of the command line ask of the daemon.

`NodeView` is what the daemon must be able to say and do, in the values of `control_views.py`; this module puts them into
protobuf. They carry the names of the messages' fields, so that one function translates all of them.
"""

# ruff: noqa: N802, ARG002 (names and arguments of the servicer's methods are gRPC's)

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any, Protocol, TypeVar

import grpc

from snapshotter.api import control_pb2 as pb
from snapshotter.api import control_pb2_grpc as pb_grpc
from snapshotter.errors import FailedPrecondition, SnapshotterError, Status
from snapshotter.service.control_views import (
    ActivityView,
    CachedFileView,
    CachedImageView,
    CacheUsageView,
    LayerView,
    PruneStep,
    StatusView,
    TeardownView,
    VerifyStep,
    VersionView,
)

BATCH = 200
"""Rows per message: of 300 bytes each, far below gRPC's limit of 4 MiB."""

EXIT_CODE_KEY = "estargz-exit-code"
"""Trailing metadata of an error: several errors share a gRPC status, scripts can tell them apart by exit code."""

T = TypeVar("T")
M = TypeVar("M")
log = logging.getLogger(__name__)


class NodeView(Protocol):
    """The daemon as the commands see it. Called from gRPC threads; every method may block and raise SnapshotterError.

    Closing an iterator early stops its work.
    """

    def version(self) -> VersionView:
        """Which program this is."""

    def status(self) -> StatusView:
        """How the daemon is."""

    def layers(self) -> Iterable[LayerView]:
        """Every layer of every image, ordered by image and position."""

    def cache_usage(self) -> CacheUsageView:
        """The cache in sums."""

    def cache_files(self) -> Iterable[CachedFileView]:
        """Every file of the cache."""

    def cache_images(self) -> Iterable[CachedImageView]:
        """What each image has in the cache, ordered by image."""

    def activity(self) -> ActivityView:
        """What goes on at this moment, and who waits for what."""

    def prune(self, *, include_referenced: bool, keep: int) -> Iterator[PruneStep]:
        """Delete files until the cache holds at most `keep` bytes; the last step is `done`."""

    def verify(self) -> Iterator[VerifyStep]:
        """Compare every file with its name, delete those that differ, tell those that are missing; the last step is `done`."""

    def teardown(self, *, force: bool) -> TeardownView:
        """Unmount everything, unless it is in use and not `force`; once done, the daemon ends."""


class ControlServicer(pb_grpc.ControlServicer):
    """The control service over a `NodeView`."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        # Guards the one thread that long work over the whole cache may take from containerd's calls.
        self._long_work = threading.Lock()

    def Version(self, request: pb.VersionRequest, context: grpc.ServicerContext) -> pb.VersionResponse:
        """See control.proto."""
        with _answering(context):
            return to_message(pb.VersionResponse, self._node.version())

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse:
        """See control.proto."""
        with _answering(context):
            return to_message(pb.StatusResponse, self._node.status())

    def Layers(self, request: pb.LayersRequest, context: grpc.ServicerContext) -> Iterator[pb.LayersResponse]:
        """See control.proto."""
        with _answering(context):
            for batch in _batches(self._node.layers()):
                yield pb.LayersResponse(layers=[to_message(pb.Layer, layer) for layer in batch])

    def CacheUsage(self, request: pb.CacheUsageRequest, context: grpc.ServicerContext) -> pb.CacheUsageResponse:
        """See control.proto."""
        with _answering(context):
            return to_message(pb.CacheUsageResponse, self._node.cache_usage())

    def CacheList(self, request: pb.CacheListRequest, context: grpc.ServicerContext) -> Iterator[pb.CacheListResponse]:
        """See control.proto."""
        with _answering(context):
            for batch in _batches(self._node.cache_files()):
                yield pb.CacheListResponse(files=[to_message(pb.CachedFile, file) for file in batch])

    def CacheImages(
        self, request: pb.CacheImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CacheImagesResponse]:
        """See control.proto."""
        with _answering(context):
            for batch in _batches(self._node.cache_images()):
                yield pb.CacheImagesResponse(images=[to_message(pb.CachedImage, image) for image in batch])

    def Activity(self, request: pb.ActivityRequest, context: grpc.ServicerContext) -> pb.ActivityResponse:
        """See control.proto."""
        with _answering(context):
            return to_message(pb.ActivityResponse, self._node.activity())

    def CachePrune(
        self, request: pb.CachePruneRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CachePruneResponse]:
        """See control.proto."""
        with _answering(context):
            if request.keep < 0:
                raise FailedPrecondition(f"prune down to {request.keep} bytes: give 0 or more")
            steps = self._node.prune(include_referenced=request.include_referenced, keep=request.keep)
            yield from self._report(context, steps, pb.CachePruneResponse)

    def CacheVerify(
        self, request: pb.CacheVerifyRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.CacheVerifyResponse]:
        """See control.proto."""
        with _answering(context):
            yield from self._report(context, self._node.verify(), pb.CacheVerifyResponse)

    def Teardown(self, request: pb.TeardownRequest, context: grpc.ServicerContext) -> pb.TeardownResponse:
        """See control.proto."""
        with _answering(context):
            return to_message(pb.TeardownResponse, self._node.teardown(force=request.force))

    def register(self, server: grpc.Server) -> None:
        """Let `server` answer these calls."""
        pb_grpc.add_ControlServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def _report(self, context: grpc.ServicerContext, steps: Iterator[Any], message: Callable[..., M]) -> Iterator[M]:
        """Yield each step as a message until the work is done or the caller has gone."""
        if not self._long_work.acquire(blocking=False):
            raise FailedPrecondition("a prune or verification of the cache is running: wait until it has ended")
        try:
            for step in steps:
                if not context.is_active():
                    return
                yield to_message(message, step)
        finally:
            if isinstance(steps, Generator):
                steps.close()
            self._long_work.release()


def to_message(message: Callable[..., M], view: Any) -> M:
    """Return the protobuf message whose fields are the dataclass's."""
    return message(**asdict(view, dict_factory=_printable))


def _printable(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _text(value) for name, value in pairs}


def _text(value: Any) -> Any:
    """Make texts UTF-8, which protobuf demands and a path need not be."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, tuple | list):
        return [_text(item) for item in value]
    return value


def _batches(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Answer errors as gRPC statuses. One of the three doors, so that one bad call ends nothing but itself."""
    try:
        yield
    except SnapshotterError as error:
        context.set_trailing_metadata(((EXIT_CODE_KEY, str(error.exit_code)),))
        context.abort(_code(error.status), _text(str(error)))
    except TimeoutError as error:
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, _text(str(error)))
    except Exception as error:
        log.exception("a control call failed")
        message = f"the daemon failed on this call ({type(error).__name__}): its log has the details"
        context.abort(grpc.StatusCode.INTERNAL, message)


def _code(status: Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status)
