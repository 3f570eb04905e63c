"""A connection to containerd's socket, and gRPC's errors in our words."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import grpc

from snapshotter.errors import (
    AlreadyExists,
    ContainerdError,
    ContainerdUnfit,
    ContainerdUnreachable,
    NotFound,
    SnapshotterError,
)

CONNECT_TIMEOUT_S = 5.0
MESSAGE_MAX = 16 << 20
"""What containerd itself sends and takes at most."""

START_IT = "start it with `systemctl start containerd`, or name its socket"


def metadata(namespace: str, lease: str | None = None) -> tuple[tuple[str, str], ...]:
    """The headers of a call: whose images, and what keeps what it makes from being collected meanwhile."""
    return (("containerd-namespace", namespace), *((("containerd-lease", lease),) if lease else ()))


@contextmanager
def connected(address: Path) -> Iterator[grpc.Channel]:
    """Yield a channel to the containerd at `address`; gRPC's errors inside the block are raised as ours.

    Raises:
        ContainerdUnreachable: nobody answers there, in time, or this user may not ask.
        ContainerdUnfit: it does not know the call.
        NotFound, AlreadyExists: its own words for that.
        ContainerdError: any other refusal.
    """
    _check(address)
    options = (
        ("grpc.enable_http_proxy", 0),  # else gRPC sends even this through HTTP_PROXY of the admin's shell
        ("grpc.max_receive_message_length", MESSAGE_MAX),
        ("grpc.max_send_message_length", MESSAGE_MAX),
    )
    with grpc.insecure_channel(f"unix:{quote(bytes(address))}", options=options) as channel, calling(address):
        yield channel


@contextmanager
def calling(address: Path) -> Iterator[None]:
    """Raise gRPC's errors inside the block as ours; see `connected`."""
    try:
        yield
    except grpc.RpcError as error:
        raise fault_of(error, address) from None


def fault_of(error: grpc.RpcError, address: Path) -> SnapshotterError:
    """Our error for a call that containerd at `address` did not answer, or refused."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFound(f"containerd at {address}: {details}")
    if code is grpc.StatusCode.ALREADY_EXISTS:
        return AlreadyExists(f"containerd at {address}: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ContainerdUnfit(
            f"{address} does not know the call ({details}): it is another service, or a containerd before 1.6"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ContainerdUnreachable(f"containerd at {address} did not answer in time; see its log")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ContainerdUnreachable(f"containerd at {address} broke off ({details or code.name.lower()}); see its log")
    return ContainerdError(f"containerd at {address} refused: {details or code.name}")


def _check(address: Path) -> None:
    """Connect once by hand: the kernel's errno says more than gRPC's UNAVAILABLE."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(bytes(address))
        except TimeoutError:
            raise ContainerdUnreachable(f"{address}: containerd accepts no connection; see its log") from None
        except OSError as error:
            raise _why_not(address, error) from None


def _why_not(address: Path, error: OSError) -> ContainerdUnreachable:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ContainerdUnreachable(f"no containerd at {address}: there is no such socket; {START_IT}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ContainerdUnreachable(f"no permission to use {address}: run this command as root (sudo)")
    if error.errno == errno.ECONNREFUSED:
        if address.is_socket():
            return ContainerdUnreachable(f"containerd at {address} does not run; {START_IT}")
        return ContainerdUnreachable(f"{address} is not a socket; name containerd's")
    return ContainerdUnreachable(f"cannot connect to {address}: {error.strerror or error}; name containerd's socket")
