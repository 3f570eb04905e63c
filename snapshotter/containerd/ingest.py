"""Writing into containerd's content store: a write has a name, goes on where an earlier one broke off, and is checked at its end."""

import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import grpc
import trio
from google.protobuf.field_mask_pb2 import FieldMask

from snapshotter.api import content_pb2 as pb
from snapshotter.api.content_pb2_grpc import ContentStub
from snapshotter.containerd.channel import fault_of
from snapshotter.containerd.client import Client
from snapshotter.errors import AlreadyExists, ContainerdError, ContainerdUnreachable, IntegrityError, NotFound

STEP_TIMEOUT_S = 120.0
COMMIT_TIMEOUT_S = 900.0
"""containerd syncs the whole file before it answers."""

STUCK_S = 180.0
"""How long somebody else's write of the same blob may not move before it is not waited for any longer."""

POLL_S = 0.25

GATHER = 1 << 20
"""Bytes handed to containerd at once: each message is a round trip and two changes of thread."""

_TRIES = 3

Content = Callable[[int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the content of a blob from a position to its end; may be called again."""

OnProgress = Callable[[int], None]
"""Takes how many more bytes are written; less than nothing where they must be written again."""


class Ingest:
    """One write, whose name nobody else can use while it is open; `offset` is how much of it is written."""

    def __init__(self, client: Client, ref: str, digest: str, size: int) -> None:
        """`ref` names the write; `digest` and `size` are the blob's."""
        self.offset = 0
        self._client = client
        self._ref, self._digest, self._size = ref, digest, size
        self._requests: queue.SimpleQueue[pb.WriteContentRequest | None] = queue.SimpleQueue()
        stub = ContentStub(client.channel)  # type: ignore[no-untyped-call]
        self._call: Any = stub.Write(iter(self._requests.get, None), metadata=client.headers())

    async def open(self) -> None:
        """Begin, or go on. Raises grpc.RpcError."""
        await self._step(pb.STAT, STEP_TIMEOUT_S)

    async def write(self, data: bytes) -> None:
        """Append."""
        with self._refusals():
            await self._step(pb.WRITE, STEP_TIMEOUT_S, data=data)

    async def commit(self, labels: Mapping[str, str]) -> None:
        """End it, and make a blob of it.

        Raises:
            IntegrityError: it has another size or digest; `abort` throws it away.
            AlreadyExists: the blob came to be by another write.
        """
        with self._refusals():
            await self._step(pb.COMMIT, COMMIT_TIMEOUT_S, labels=labels)

    def close(self) -> None:
        """Give its name free; what is written stays for who goes on."""
        self._requests.put(None)
        self._call.cancel()

    def _refusals(self) -> "_Refusals":
        return _Refusals(self._client, self._digest)

    async def _step(
        self, action: "pb.WriteAction", timeout_s: float, data: bytes = b"", labels: Mapping[str, str] | None = None
    ) -> None:
        request = pb.WriteContentRequest(
            action=action,
            ref=self._ref,
            total=self._size,
            expected=self._digest,
            offset=self.offset,
            data=data,
            labels=labels,
        )

        def exchange() -> pb.WriteContentResponse | None:
            self._requests.put(request)
            return next(self._call, None)

        try:
            with trio.fail_after(timeout_s):
                answer = await trio.to_thread.run_sync(exchange, abandon_on_cancel=True)
        except trio.TooSlowError:
            raise ContainerdUnreachable(
                f"containerd at {self._client.address} did not take {self._digest} in time: its disk is slow or full; "
                "see its log"
            ) from None
        if answer is None:
            raise ContainerdError(f"containerd at {self._client.address} ended the write of {self._digest}; try again")
        self.offset = answer.offset


class _Refusals:
    """Turns gRPC's errors inside the block into ours."""

    def __init__(self, client: Client, digest: str) -> None:
        self._client, self._digest = client, digest

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, grpc.RpcError):
            return
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            raise IntegrityError(f"what was written for {self._digest} is something else: {error.details()}") from None
        raise fault_of(error, self._client.address) from None


@asynccontextmanager
async def writing(client: Client, ref: str, digest: str, size: int) -> AsyncIterator[Ingest | None]:
    """A write of the blob `digest` named `ref`; None if the blob is there, which the lease then keeps.

    Waits while somebody else writes it and gets on.

    Raises:
        ContainerdError: it refused, or somebody else's write is stuck.
    """
    ingest = await _opened(client, ref, digest, size)
    try:
        yield ingest
    finally:
        if ingest is not None:
            ingest.close()


async def _opened(client: Client, ref: str, digest: str, size: int) -> Ingest | None:
    seen, waits_since = -1, trio.current_time()
    while True:
        ingest = Ingest(client, ref, digest, size)
        try:
            await ingest.open()
        except grpc.RpcError as error:
            ingest.close()
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return None
            if error.code() is not grpc.StatusCode.UNAVAILABLE or "locked" not in (error.details() or ""):
                raise fault_of(error, client.address) from None
        except BaseException:
            ingest.close()
            raise
        else:
            return ingest
        written = await _written(client, ref)
        if written != seen:
            seen, waits_since = written, trio.current_time()
        elif trio.current_time() > waits_since + STUCK_S:
            raise ContainerdError(
                f"somebody else writes {digest} into containerd's content store and does not get on for "
                f"{STUCK_S:.0f} s; end that pull, or wait for it, and try again"
            )
        await trio.sleep(POLL_S)


async def _written(client: Client, ref: str) -> int:
    """How far somebody's write is; -2 if it has just ended."""
    try:
        answer = await client.call(_stub(client).Status, pb.StatusRequest(ref=ref))
    except NotFound:
        return -2
    return int(answer.status.offset)


async def abort(client: Client, ref: str) -> None:
    """Throw a write away, if there is one."""
    try:
        await client.call(_stub(client).Abort, pb.AbortRequest(ref=ref))
    except NotFound:
        return


async def put(client: Client, ref: str, digest: str, size: int, content: Content, on_progress: OnProgress) -> bool:
    """Have a blob in the content store; whether it had to be written. What an earlier write left is not written again.

    Raises:
        IntegrityError: `content` has another digest or size than the blob.
        ContainerdError: it refused.
    """
    for _ in range(_TRIES):
        async with writing(client, ref, digest, size) as write:
            if write is None:
                return False
            written = min(write.offset, size)
            on_progress(written)
            try:
                if written < size:
                    async with content(written) as pieces:
                        written += await _write_all(write, pieces, on_progress)
                await write.commit({})
            except AlreadyExists:
                return True  # by another write of the same blob
            except IntegrityError:
                on_progress(-written)
            else:
                return True
        await abort(client, ref)
    raise IntegrityError(f"what was to be written is not {digest}")


async def write_document(client: Client, ref: str, digest: str, data: bytes) -> None:
    """Have a small blob in the content store.

    Raises:
        ContainerdError: it refused.
    """

    @asynccontextmanager
    async def rest(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async with aclosing(_once(data[start:])) as pieces:
            yield pieces

    try:
        await put(client, ref, digest, len(data), rest, lambda _size: None)
    except IntegrityError:
        raise ContainerdError(f"containerd at {client.address} does not take {digest} as it is; see its log") from None


async def _write_all(write: Ingest, pieces: AsyncIterator[bytes], on_progress: OnProgress) -> int:
    """Write all pieces, and return how many bytes they were."""
    gathered, whole = bytearray(), 0
    async for piece in pieces:
        gathered += piece
        whole += len(piece)
        on_progress(len(piece))
        if len(gathered) >= GATHER:
            await write.write(bytes(gathered))
            gathered.clear()
    if gathered:
        await write.write(bytes(gathered))
    return whole


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


async def set_labels(client: Client, digest: str, labels: Mapping[str, str]) -> None:
    """Set these labels of a blob; others stay. Raises NotFound: no such blob."""
    request = pb.UpdateRequest(
        info=pb.Info(digest=digest, labels=labels), update_mask=FieldMask(paths=[f"labels.{key}" for key in labels])
    )
    await client.call(_stub(client).Update, request)


async def labels_of(client: Client, digest: str) -> dict[str, str]:
    """The labels of a blob. Raises NotFound: no such blob."""
    answer = await client.call(_stub(client).Info, pb.InfoRequest(digest=digest))
    return dict(answer.info.labels)


def _stub(client: Client) -> ContentStub:
    return ContentStub(client.channel)  # type: ignore[no-untyped-call]
