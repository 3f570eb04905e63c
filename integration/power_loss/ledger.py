"""What containerd was told: a server between it and our daemon that passes every call on and keeps the answers.

An answer is on the ledger before containerd has it. A snapshot ought to be there from the moment in which its making was
answered until somebody asks for its removal.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from snapshotter.api import snapshots_pb2 as api

TARGET = "containerd.io/snapshot.ref"
NAMESPACE = "containerd-namespace"
_STREAMS = frozenset({"List", "Layers", "CacheList", "CacheImages", "CachePrune", "CacheVerify"})
_HANGS_S = 120.0


@dataclass(frozen=True, slots=True)
class Told:
    """A snapshot that containerd knows of."""

    key: str
    kind: int
    parent: str


class Ledger:
    """The answers so far. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._there: dict[str, Told] = {}
        self._asked_away: list[str] = []  # keys whose removal or commit was asked for, in that order
        self._under_way: list[str] = []
        self.answers = 0

    def keys(self) -> list[str]:
        """Keys of the snapshots that ought to be there now."""
        with self._lock:
            return sorted(self._there)

    def around(self, moment: Callable[[], Any]) -> list[Told]:
        """Run `moment`; return the snapshots that ought to be there whenever exactly it was."""
        with self._lock:
            there = dict(self._there)
            doubtful = set(self._under_way)
            asked = len(self._asked_away)
        moment()
        with self._lock:
            doubtful |= {*self._asked_away[asked:]}
        return [told for key, told in there.items() if key not in doubtful]

    def asked(self, request: Any) -> None:
        """A call has come in."""
        with self._lock:
            for key in _leaving(request):
                self._asked_away.append(key)
                self._under_way.append(key)

    def answered(self, request: Any, code: grpc.StatusCode) -> None:
        """A call was answered, and containerd will be told."""
        with self._lock:
            self.answers += 1
            for key in _leaving(request):
                self._under_way.remove(key)
            if code is grpc.StatusCode.OK:
                self._note(request)
            elif code is grpc.StatusCode.ALREADY_EXISTS and (target := request.labels.get(TARGET)):
                self._there.setdefault(target, Told(target, api.COMMITTED, request.parent))

    def _note(self, request: Any) -> None:
        match request:
            case api.PrepareSnapshotRequest():
                self._there[request.key] = Told(request.key, api.ACTIVE, request.parent)
            case api.ViewSnapshotRequest():
                self._there[request.key] = Told(request.key, api.VIEW, request.parent)
            case api.RemoveSnapshotRequest():
                for key in _leaving(request):
                    self._there.pop(key, None)
            case api.CommitSnapshotRequest():
                active = self._there.pop(request.key, None)
                self._there[request.name] = Told(request.name, api.COMMITTED, active.parent if active else "")


def _leaving(request: Any) -> list[str]:
    """Keys that a call takes away. A lazy snapshot has a name of the daemon's, which ends with the one that was asked for."""
    if not isinstance(request, api.RemoveSnapshotRequest | api.CommitSnapshotRequest):
        return []
    *_, kind, target = ("", "", *request.key.split("/"))
    return [request.key, *([target] if kind.startswith("lazy-") else [])]


_KEPT: dict[str, Any] = {
    "Prepare": api.PrepareSnapshotRequest,
    "View": api.ViewSnapshotRequest,
    "Commit": api.CommitSnapshotRequest,
    "Remove": api.RemoveSnapshotRequest,
}


class _Passing(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # no generic class where it runs
    """Every method, as bytes."""

    def __init__(self, channel: grpc.Channel, ledger: Ledger) -> None:
        self._channel = channel
        self._ledger = ledger

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = handler_call_details.method
        word = method.rpartition("/")[2]
        if word in _STREAMS:
            return grpc.unary_stream_rpc_method_handler(lambda request, context: self._stream(method, request, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(method, request, context))

    def _unary(self, method: str, raw: bytes, context: grpc.ServicerContext) -> bytes:
        kind = _KEPT.get(method.rpartition("/")[2])
        request = kind.FromString(raw) if kind else None
        self._ledger.asked(request)
        code, details, answer = grpc.StatusCode.OK, "", b""
        try:
            call = self._channel.unary_unary(method, _as_it_is, _as_it_is)
            answer = call(raw, metadata=_metadata(context), timeout=_HANGS_S)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        finally:
            if request is not None:
                self._ledger.answered(request, code)
        if code is not grpc.StatusCode.OK:
            context.abort(code, details)
        return bytes(answer)

    def _stream(self, method: str, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            call = self._channel.unary_stream(method, _as_it_is, _as_it_is)
            yield from call(raw, metadata=_metadata(context), timeout=_HANGS_S)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details() or "")


def _metadata(context: grpc.ServicerContext) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in context.invocation_metadata() if key == NAMESPACE)


def _as_it_is(message: bytes) -> bytes:
    return message


@contextmanager
def recorded(ledger: Ledger, daemon: Path, address: Path) -> Iterator[Path]:
    """Serve at `address` what the daemon serves at its own."""
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix://{daemon}", options=options) as channel:
        server = grpc.server(ThreadPoolExecutor(32), handlers=[_Passing(channel, ledger)], options=options)
        server.add_insecure_port(f"unix://{address}")
        server.start()
        try:
            yield address
        finally:
            server.stop(5).wait()
