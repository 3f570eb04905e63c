"""Calls are timed by method and status."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snapshotter.api import snapshots_pb2 as pb
from snapshotter.api import snapshots_pb2_grpc as pb_grpc
from snapshotter.service.server import build_server
from snapshotter.service.timing import CallTimer

Told = list[tuple[str, str, float]]


class Answers(pb_grpc.SnapshotsServicer):
    """Says what the key tells it to."""

    def Stat(self, request: pb.StatSnapshotRequest, context: grpc.ServicerContext) -> pb.StatSnapshotResponse:
        if request.key == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such snapshot")
        return pb.StatSnapshotResponse()

    def List(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        for _ in range(3):
            yield pb.ListSnapshotsResponse()
        if request.filters:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such filter")


@pytest.fixture
def timed() -> Iterator[tuple[Any, grpc.Channel, Told]]:
    told: Told = []
    ticks = iter(range(1000))
    timer = CallTimer(lambda *call: told.append(call), clock=lambda: float(next(ticks)))
    with tempfile.TemporaryDirectory(prefix="et-", dir="/tmp") as scratch:
        address = Path(scratch, "s")
        register = lambda server: pb_grpc.add_SnapshotsServicer_to_server(Answers(), server)  # type: ignore[no-untyped-call]  # noqa: E731
        server = build_server(address, [register], 2, [timer])
        server.start()
        try:
            with grpc.insecure_channel(f"unix:{address}") as channel:
                stub: Any = pb_grpc.SnapshotsStub
                yield stub(channel), channel, told
        finally:
            server.stop(0)


def test_an_answer_and_an_error_are_told_with_their_status(timed: tuple[Any, grpc.Channel, Told]) -> None:
    stub, _, told = timed
    stub.Stat(pb.StatSnapshotRequest(key="there"), timeout=30)
    with pytest.raises(grpc.RpcError, match="no such snapshot"):
        stub.Stat(pb.StatSnapshotRequest(key="missing"), timeout=30)
    assert told == [("Snapshots/Stat", "OK", 1.0), ("Snapshots/Stat", "NOT_FOUND", 1.0)]


def test_a_stream_is_told_when_it_ends(timed: tuple[Any, grpc.Channel, Told]) -> None:
    stub, _, told = timed
    assert len(list(stub.List(pb.ListSnapshotsRequest(), timeout=30))) == 3
    with pytest.raises(grpc.RpcError, match="no such filter"):
        list(stub.List(pb.ListSnapshotsRequest(filters=["x"]), timeout=30))
    assert [call[:2] for call in told] == [("Snapshots/List", "OK"), ("Snapshots/List", "INVALID_ARGUMENT")]


def test_unknown_methods_and_health_are_not_told(timed: tuple[Any, grpc.Channel, Told]) -> None:
    stub, channel, told = timed
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        channel.unary_unary("/containerd.services.snapshots.v1.Snapshots/Invented", None, None)(b"", timeout=30)
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        channel.unary_unary("/anything/else", None, None)(b"", timeout=30)
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING
    assert told == []
    # What the servicer leaves out is a method all the same.
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        stub.Usage(pb.UsageRequest(key="x"), timeout=30)
    assert [call[:2] for call in told] == [("Snapshots/Usage", "UNIMPLEMENTED")]


class Context:
    """A call without a word about its end."""

    def __init__(self, *, active: bool) -> None:
        self._active = active

    def code(self) -> grpc.StatusCode | None:
        return None

    def is_active(self) -> bool:
        return self._active


@pytest.mark.parametrize(("active", "code"), [(True, "UNKNOWN"), (False, "CANCELLED")])
def test_a_fault_is_told_as_unknown_and_a_caller_that_left_as_cancelled(active: bool, code: str) -> None:
    told: Told = []

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CallTimer(lambda *call: told.append(call))._single("Snapshots/Stat", broken)(None, Context(active=active))
    assert told[0][:2] == ("Snapshots/Stat", code)


def test_a_stream_that_nobody_reads_to_its_end_is_told() -> None:
    told: Told = []
    stream = CallTimer(lambda *call: told.append(call))._stream("Control/Layers", lambda *_: iter("abc"))
    answer: Any = stream(None, Context(active=False))
    assert next(answer) == "a"
    answer.close()
    assert [call[:2] for call in told] == [("Control/Layers", "CANCELLED")]
