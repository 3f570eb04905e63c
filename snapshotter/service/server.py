"""The gRPC server on its unix socket: containerd's service, the control service, and grpc.health.v1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from snapshotter.errors import StoreError
from snapshotter.service.address import check_address, passing_name
from snapshotter.service.call_threads import CallThreads, ClientsAwaited

# Adds one service to a server, such as `SnapshotsServicer.register`.
Registration = Callable[[grpc.Server], None]

# containerd's side takes and sends 16 MiB; grpc's default for receiving is 4.
_MESSAGE_LIMIT = 16 << 20
# Of one connection at a time; further ones wait at the client. containerd uses one connection for all of its calls.
_STREAMS = 256
# Calls that are not taken yet. From 1000 on grpc would cancel some of them by chance, whoever's they are [tried]; what one
# client sends waits for it, and costs a few KB a call.
_PENDING = 1 << 20
_SOCKET_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class SocketServer:
    """A bound gRPC server; nobody is answered before `start`."""

    server: grpc.Server
    health: health.HealthServicer
    address: Path
    threads: CallThreads

    def start(self) -> None:
        """Answer calls, and say so to whoever asks for the health of the whole server."""
        self.threads.begin()
        self.server.start()
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` to end, and take the socket away."""
        self.health.enter_graceful_shutdown()
        self.server.stop(grace_s).wait()
        self.threads.close()
        self.address.unlink(missing_ok=True)


def build_server(
    address: Path,
    registrations: Sequence[Registration],
    max_workers: int,
    interceptors: Sequence["grpc.ServerInterceptor[Any, Any]"] = (),
) -> SocketServer:
    """Bind a server for these services to the unix socket `address`, for its owner alone. `interceptors` see every call.

    Raises:
        StoreLocked: somebody answers there already.
        ConfigError: the address is too long, or something that is no socket lies there.
        StoreError: the socket cannot be made.
    """
    check_address(address)
    threads = CallThreads(max_workers)
    server = grpc.server(
        threads,
        interceptors=[ClientsAwaited(threads), *interceptors],
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.server.max_pending_requests", _PENDING),
            ("grpc.server.max_pending_requests_hard_limit", _PENDING),
            ("grpc.so_reuseport", 0),
        ],
    )
    for register in registrations:
        register(server)
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        _bind(server, address)
    except OSError as error:
        raise StoreError(f"socket {address}: {error.strerror or error}") from error
    return SocketServer(server, checks, address, threads)


def _bind(server: grpc.Server, address: Path) -> None:
    """Bind under a passing name and link: at no moment does the socket have another mode than it keeps.

    grpc would remove a socket that lies there without asking whether somebody listens. No rename: between directories
    that takes the lock of the whole file system.
    """
    if not address.parent.is_dir():
        address.parent.mkdir(mode=_DIRECTORY_MODE, parents=True)
        address.parent.chmod(_DIRECTORY_MODE)
    bound = passing_name(address)
    bound.parent.mkdir(mode=_DIRECTORY_MODE)
    try:
        try:
            server.add_insecure_port(f"unix:{bound}")
        except RuntimeError as error:
            raise StoreError(f"socket {address}: {error}") from error
        bound.chmod(_SOCKET_MODE)
        address.unlink(missing_ok=True)
        address.hardlink_to(bound)
    finally:
        bound.unlink(missing_ok=True)
        bound.parent.rmdir()
