"""Reading from containerd's content store, whatever the size of a blob."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import trio

from snapshotter.api.content_pb2 import InfoRequest, ReadContentRequest
from snapshotter.api.content_pb2_grpc import ContentStub
from snapshotter.containerd.channel import fault_of
from snapshotter.containerd.client import Client
from snapshotter.errors import ContainerdUnreachable, FormatError, NotFound

STEP_TIMEOUT_S = 120.0


async def size_of(client: Client, digest: str) -> int | None:
    """How large a blob is, None if it is not there."""
    stub = ContentStub(client.channel)  # type: ignore[no-untyped-call]
    try:
        answer = await client.call(stub.Info, InfoRequest(digest=digest))
    except NotFound:
        return None
    return int(answer.info.size)


@asynccontextmanager
async def open_range(client: Client, digest: str, start: int, size: int) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of exactly `size` bytes of a blob, unverified; the call is broken off when the block ends.

    Raises:
        NotFound: no such blob.
        FormatError: the blob ends before.
    """
    stub = ContentStub(client.channel)  # type: ignore[no-untyped-call]
    call = stub.Read(ReadContentRequest(digest=digest, offset=start, size=size), metadata=client.headers())
    async with aclosing(_pieces(client, call, digest, size)) as pieces:
        try:
            yield pieces
        finally:
            call.cancel()


async def _pieces(client: Client, call: Any, digest: str, size: int) -> AsyncGenerator[bytes, None]:
    left = size
    while left:
        try:
            with trio.fail_after(STEP_TIMEOUT_S):
                answer = await trio.to_thread.run_sync(next, call, None, abandon_on_cancel=True)
        except trio.TooSlowError:
            raise ContainerdUnreachable(
                f"containerd at {client.address} did not send {digest} in time: its disk is slow; see its log"
            ) from None
        except grpc.RpcError as error:
            raise fault_of(error, client.address) from None
        if answer is None or len(answer.data) > left:
            raise FormatError(f"containerd at {client.address} has other than {size} bytes of {digest} to send")
        left -= len(answer.data)
        yield answer.data
