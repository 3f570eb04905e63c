"""containerd's services for the tasks of a trio run: a call waits without a thread, and one that is given up is broken off."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import trio

from snapshotter.containerd.channel import fault_of, metadata
from snapshotter.errors import ConfigError

T = TypeVar("T")

TIMEOUT_S = 60.0
"""For a call that changes or reads metadata: all wait while containerd collects garbage."""

_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_NAMESPACE_MAX = 76


def checked_namespace(name: str) -> str:
    """Return `name` if it can be a namespace of containerd.

    Raises:
        ConfigError: it cannot.
    Source: containerd's identifiers package.
    """
    if _NAMESPACE.fullmatch(name) is None or len(name) > _NAMESPACE_MAX:
        raise ConfigError(
            f"namespace {name[:100]!r}: containerd takes letters and digits, joined by single '.', '_' or '-', at most "
            f"{_NAMESPACE_MAX} of them; pods are in k8s.io, ctr is in default"
        )
    return name


class Client:
    """One containerd, one namespace, and the lease that keeps what is made. Usable inside one trio run."""

    def __init__(self, channel: grpc.Channel, address: Path, namespace: str, lease: str) -> None:
        """`lease` is the id that `leases.create` takes; calls carry it from then on."""
        self.channel = channel
        self.address = address
        self.namespace = namespace
        self.lease = lease

    def headers(self, *, leased: bool = True) -> tuple[tuple[str, str], ...]:
        """The headers of a call, with the lease or without."""
        return metadata(self.namespace, self.lease if leased else None)

    async def call(self, method: Any, request: object, timeout_s: float = TIMEOUT_S, *, leased: bool = True) -> Any:
        """The answer of a stub's unary `method`.

        Raises:
            SnapshotterError: what `channel.fault_of` makes of a refusal.
        """
        future = method.future(request, timeout=timeout_s, metadata=self.headers(leased=leased))
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()

        def tell(_future: object) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

        future.add_done_callback(tell)
        try:
            await ended.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        try:
            return future.result()
        except grpc.RpcError as error:
            raise fault_of(error, self.address) from None
