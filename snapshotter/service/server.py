"""The gRPC server on its unix socket: containerd's service, the control service, and grpc.health.v1."""

import errno
import os
import secrets
import socket
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from snapshotter.errors import ConfigError, StoreError, StoreLocked

# Adds one service to a server, such as `SnapshotsServicer.register`.
Registration = Callable[[grpc.Server], None]

# containerd's side takes and sends 16 MiB; grpc's default for receiving is 4.
_MESSAGE_LIMIT = 16 << 20
_SOCKET_MODE = 0o600
_DIRECTORY_MODE = 0o700
# sockaddr_un: 108 bytes with the closing zero (unix(7)).
_MAX_ADDRESS = 107
_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class SocketServer:
    """A bound gRPC server; nobody is answered before `start`."""

    server: grpc.Server
    health: health.HealthServicer
    address: Path

    def start(self) -> None:
        """Answer calls, and say so to whoever asks for the health of the whole server."""
        self.server.start()
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` to end, and take the socket away."""
        self.health.enter_graceful_shutdown()
        self.server.stop(grace_s).wait()
        self.address.unlink(missing_ok=True)


def build_server(address: Path, registrations: Sequence[Registration], max_workers: int) -> SocketServer:
    """Bind a server for these services to the unix socket `address`, for its owner alone.

    Raises:
        StoreLocked: somebody answers there already.
        ConfigError: the address is too long, or something that is no socket lies there.
        StoreError: the socket cannot be made.
    """
    if max(len(os.fsencode(path)) for path in (address, _passing(address))) > _MAX_ADDRESS:
        raise ConfigError(
            f"address {address} is too long: a socket's path may have {_MAX_ADDRESS} bytes, and what "
            "it is made under needs up to 12 behind the directory"
        )
    server = grpc.server(
        ThreadPoolExecutor(max_workers, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
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
    return SocketServer(server, checks, address)


def _bind(server: grpc.Server, address: Path) -> None:
    """Bind under a passing name and rename: at no moment does the socket have another mode than it keeps.

    grpc would remove a socket that lies there without asking whether somebody listens.
    """
    if not address.parent.is_dir():
        address.parent.mkdir(mode=_DIRECTORY_MODE, parents=True)
        address.parent.chmod(_DIRECTORY_MODE)
    _refuse_taken(address)
    bound = _passing(address)
    bound.parent.mkdir(mode=_DIRECTORY_MODE)
    try:
        try:
            server.add_insecure_port(f"unix:{bound}")
        except RuntimeError as error:
            raise StoreError(f"socket {address}: {error}") from error
        bound.chmod(_SOCKET_MODE)
        bound.rename(address)
    finally:
        bound.unlink(missing_ok=True)
        bound.parent.rmdir()


def _passing(address: Path) -> Path:
    return address.parent / f".{secrets.token_hex(4)}" / "s"


def _refuse_taken(address: Path) -> None:
    try:
        mode = address.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"address {address} is not a socket but something else: remove it or choose another address")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(address))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return  # left by a process that is gone; the rename replaces it
            raise
    raise StoreLocked(f"somebody answers at {address} already: is another daemon running there?")
