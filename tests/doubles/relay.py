"""A TCP relay that adds distance: one-way delay, bandwidth, and a count of the bytes in each direction.

Only the standard library, so that benchmarks and the demonstration can use it as well. A connection to it is accepted at
once by this side's kernel; so that it costs the round trip of a real handshake, its first bytes wait one round trip more.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")
_READ = 64 << 10
# Pieces on their way in one direction of one connection; together the window of a TCP connection over a long line.
_IN_FLIGHT = 256
_GRAIN_S = 0.0012
_ANSWER_S = 60


class Relay:
    """Listens on 127.0.0.1 and passes everything to `(host, port)` while its context is open.

    `delay_s` is one way (a round trip is twice that); `bandwidth` is in bytes per second and direction, for all
    connections together, 0 for no limit. `up` counts the bytes that clients sent, `down` those that they were sent. `at` is
    the port to listen on, 0 for any: that of a relay that has ended, whose clients shall find another in its place.
    """

    def __init__(self, host: str, port: int, *, delay_s: float = 0.0, bandwidth: float = 0.0, at: int = 0) -> None:
        self._target = (host, port)
        self.delay_s = delay_s
        self.up = 0
        self.down = 0
        self.connections = 0
        self.port = at
        self._up_line = _Line(bandwidth)
        self._down_line = _Line(bandwidth)
        self._loop = asyncio.new_event_loop()
        self._live: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_READ))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """Where clients connect, as host:port."""
        return f"127.0.0.1:{self.port}"

    def drop_all(self) -> None:
        """Break every connection, like a cable that is pulled; new ones may come."""
        self._call(self._cancel())

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    async def _stop(self) -> None:
        self._server.close()
        await self._cancel()

    async def _cancel(self) -> None:
        live = list(self._live)
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._live.add(task)
            task.add_done_callback(self._live.discard)
        self.connections += 1
        try:
            await self._join(reader, writer)
        except asyncio.CancelledError:
            return
        finally:
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_READ)
        except OSError:
            return
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, self._up_line, self._count_up, handshake_s=2 * self.delay_s),
                self._pass(far_reader, writer, self._down_line, self._count_down),
            )
        finally:
            far_writer.transport.abort()

    def _count_up(self, size: int) -> None:
        self.up += size

    def _count_down(self, size: int) -> None:
        self.down += size

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        line: "_Line",
        count: Callable[[int], None],
        *,
        handshake_s: float = 0.0,
    ) -> None:
        """Carry one direction to its end; what is read leaves `delay_s` later, in order."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)
        arrival = asyncio.create_task(self._arrive(on_the_way, writer, count))
        try:
            open_at = self._loop.time() + handshake_s
            with contextlib.suppress(OSError):
                while data := await reader.read(_READ):
                    departs = line.reserve(max(self._loop.time(), open_at), len(data))
                    await on_the_way.put((departs + self.delay_s, data))
            await on_the_way.put((self._loop.time() + self.delay_s, b""))
            await arrival
        finally:
            arrival.cancel()

    async def _arrive(
        self, on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await on_the_way.get()
                # The loop sleeps in whole milliseconds, rounded up; over a dozen round trips that would be one more.
                if (wait_s := due - self._loop.time() - _GRAIN_S) > 0:
                    await asyncio.sleep(wait_s)
                while self._loop.time() < due:  # noqa: ASYNC110 (a spin of a millisecond)
                    await asyncio.sleep(0)
                if not data:
                    writer.write_eof()
                    return
                # Counted first: whoever has read the bytes finds them counted.
                count(len(data))
                writer.write(data)
                await writer.drain()


class _Line:
    """One direction of the line, which all connections share."""

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._free_at = 0.0

    def reserve(self, now: float, size: int) -> float:
        """When the last of `size` bytes has left, if they are ready at `now`."""
        if not self._bandwidth:
            return now
        self._free_at = max(now, self._free_at) + size / self._bandwidth
        return self._free_at
