"""A TCP relay on the loopback interface that counts what crosses it and can make it slow."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass

PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes and connections since the relay started."""

    received: int
    sent: int
    connections: int

    def since(self, earlier: "Traffic") -> "Traffic":
        return Traffic(
            self.received - earlier.received, self.sent - earlier.sent, self.connections - earlier.connections
        )


class Relay:
    """Listens on a port of its own and passes everything on to 127.0.0.1:`target_port`.

    `round_trip_s` is added to every exchange, half of it in each direction; bytes in flight overlap as on a real
    line, and a connection costs one round trip before its first byte. `received` counts what the client receives.
    """

    def __init__(self, target_port: int, round_trip_s: float = 0.0) -> None:
        self._target = target_port
        self.round_trip_s = round_trip_s
        self._received = self._sent = self._connections = 0
        self._down = False
        self.port = 0

    def traffic(self) -> Traffic:
        return Traffic(self._received, self._sent, self._connections)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Break all connections and accept none until the block ends."""
        self._down = True
        self._loop.call_soon_threadsafe(self._break)
        try:
            yield
        finally:
            self._down = False

    def _break(self) -> None:
        for task in self._tasks:
            task.cancel()

    @contextmanager
    def running(self) -> Iterator["Relay"]:
        """Serve from a thread of its own until the block ends."""
        ready: Future[asyncio.Event] = Future()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="relay", daemon=True)
        thread.start()
        stop = ready.result(timeout=10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(stop.set)
            thread.join(timeout=10)

    async def _serve(self, ready: "Future[asyncio.Event]") -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=PIECE)
        self.port = server.sockets[0].getsockname()[1]
        ready.set_result(stop)
        await stop.wait()
        server.close()
        self._break()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._connection(client_in, client_out))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        self._connections += 1
        if self._down:
            client_out.transport.abort()
            return
        try:
            await asyncio.sleep(self.round_trip_s)
            target_in, target_out = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE)
        except OSError:
            client_out.transport.abort()
            return
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(
                self._pass(client_in, target_out, inward=False), self._pass(target_in, client_out, inward=True)
            )
        target_out.transport.abort()
        client_out.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, inward: bool) -> None:
        """Copy one direction; each piece leaves half a round trip after it came, in order."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def deliver() -> None:
            while True:
                due, piece = await line.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                if not piece:
                    break
                sink.write(piece)
                if inward:
                    self._received += len(piece)
                else:
                    self._sent += len(piece)
                await sink.drain()
            sink.write_eof()

        delivery = self._loop.create_task(deliver())
        try:
            piece = b"start"
            while piece and not delivery.done():
                piece = await source.read(PIECE)
                await line.put((self._loop.time() + self.round_trip_s / 2, piece))
            await delivery
        finally:
            delivery.cancel()
