"""Asking the daemon: finds its socket, and says in words what keeps it from answering."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from snapshotter.config import load, override
from snapshotter.errors import DaemonUnreachable, SnapshotterError

if TYPE_CHECKING:
    import grpc

    from snapshotter.api.control_pb2_grpc import ControlStub

EXIT_CODE_KEY = "estargz-exit-code"
"""Trailing metadata in which the daemon tells an error's exit code (service/control.py sends it)."""

START_IT = "start it with `systemctl start estargz-snapshotter` or `snapshotter serve`"
NAME_IT = "name the daemon's socket with --address"


class DaemonAbsent(DaemonUnreachable):
    """Nobody listens at the socket. What answers oddly, slowly or not for this user is no absent daemon."""


class DaemonRefused(SnapshotterError):
    """The daemon answered with an error; its exit code is this one's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # one class stands for all that the daemon can meet


@contextmanager
def daemon(config_path: Path | None, address: Path | None) -> Iterator["ControlStub"]:
    """Yield the daemon's control service; what goes wrong with calls inside the block is raised as our own errors.

    Raises:
        ConfigError: the configuration that names the socket is wrong.
        DaemonAbsent: nobody listens there.
        DaemonUnreachable: nobody answers in time, this user may not ask, or it is another service.
        DaemonRefused: the daemon answered with an error.
    """
    path = address or override(load(config_path), address=None).socket
    _check_socket(path)
    import grpc

    from snapshotter.api.control_pb2_grpc import ControlStub

    # Without the proxy option gRPC would send even this through HTTP_PROXY of the admin's shell.
    with grpc.insecure_channel(f"unix:{quote(bytes(path))}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            yield ControlStub(channel)  # type: ignore[no-untyped-call]  # generated
        except grpc.RpcError as error:
            raise _translate(error, path) from None


def _check_socket(path: Path) -> None:
    """Connect once by hand: the kernel's errno says more than gRPC's UNAVAILABLE."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(bytes(path))
        except TimeoutError:
            raise DaemonUnreachable(f"{path}: nobody accepts the connection; see the daemon's log") from None
        except OSError as error:
            raise _why_not(path, error) from None


def _why_not(path: Path, error: OSError) -> DaemonUnreachable:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return DaemonAbsent(f"no daemon at {path}: there is no such socket; {START_IT}, or {NAME_IT}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return DaemonUnreachable(f"no permission to use {path}: run this command as root (sudo)")
    if error.errno == errno.ECONNREFUSED:
        if path.is_socket():
            return DaemonAbsent(f"the daemon at {path} is gone; running containers wait for the next one; {START_IT}")
        return DaemonUnreachable(f"{path} is not a socket; {NAME_IT}")
    if error.errno is None:  # Python's own refusal of a path that does not fit sockaddr_un
        return DaemonUnreachable(f"{path}: {error}; {NAME_IT}")
    return DaemonUnreachable(f"cannot connect to {path}: {error.strerror}; {NAME_IT}")


def _translate(error: "grpc.RpcError", path: Path) -> SnapshotterError:
    import grpc

    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return DaemonUnreachable(
            f"{path} answers, but not as this daemon: another service, or another version of it; {NAME_IT}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DaemonUnreachable(
            f"the daemon at {path} did not answer in time: it is busy or stuck; see its log, or give more --timeout"
        )
    metadata = {entry.key: entry.value for entry in error.trailing_metadata() or ()}
    if EXIT_CODE_KEY in metadata:
        return DaemonRefused(details, int(metadata[EXIT_CODE_KEY]))
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return DaemonUnreachable(
            f"the service at {path} broke off ({details or code.name.lower()}): "
            f"it ended meanwhile, or it is another service; {NAME_IT}"
        )
    return DaemonRefused(details or f"the daemon answered {code.name}", SnapshotterError.exit_code)
