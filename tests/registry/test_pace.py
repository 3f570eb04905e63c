"""Waits and slow bodies, on a clock that jumps."""

import httpx
import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryUnreachable
from snapshotter.registry.blob import Blob
from snapshotter.registry.client import Registry
from snapshotter.registry.reference import parse_reference
from tests.registry.memory import Network, Pieces, client, simulate

SIZE = 1 << 20
CONFIG = RegistryConfig(read_timeout_s=20.0, retries=4)


def answer(request: httpx.Request, *steps: bytes | float | Exception) -> httpx.Response:
    first, last = request.headers["range"].removeprefix("bytes=").split("-")
    return httpx.Response(206, headers={"content-range": f"bytes {first}-{last}/{SIZE}"}, stream=Pieces(steps))


def blob(registry: Registry) -> Blob:
    return registry.blob(parse_reference("r.test/a/b"), "sha256:" + "0" * 64, SIZE)


def test_waits_between_tries_double_and_end() -> None:
    net = Network(lambda _: httpx.Response(503))

    async def work() -> None:
        async with client(net, config=CONFIG) as registry:
            with pytest.raises(RegistryUnreachable):
                await blob(registry).read_range(0, 10)

    simulate(work)
    assert net.times == pytest.approx([0, 0.1, 0.3, 0.7, 1.5])


@pytest.mark.parametrize(("asked", "waited"), [("5", 5), ("3600", 30)])
def test_retry_after_is_waited_for_but_not_for_ever(asked: str, waited: float) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if len(net.requests) == 1:
            return httpx.Response(429, headers={"retry-after": asked})
        return answer(request, bytes(10))

    net = Network(handler)

    async def work() -> None:
        async with client(net, config=CONFIG) as registry:
            await blob(registry).read_range(0, 10)

    simulate(work)
    assert net.times == pytest.approx([0, waited])


def test_a_body_that_drips_is_given_up_in_bounded_time() -> None:
    net = Network(lambda request: answer(request, *(b"x", 15.0) * 10_000))

    async def work() -> None:
        async with client(net, config=CONFIG) as registry:
            with pytest.raises(RegistryUnreachable, match=r"2 bytes|3 bytes"):
                await blob(registry).read_range(0, SIZE)
            assert trio.current_time() < 6 * 35

    simulate(work)
    assert len(net.requests) == 5


def test_a_slow_but_steady_body_is_read_to_its_end() -> None:
    net = Network(lambda request: answer(request, *(bytes(16 << 10), 10.0) * 64))

    async def work() -> None:
        async with client(net, config=CONFIG) as registry:
            assert len(await blob(registry).read_range(0, SIZE)) == SIZE

    simulate(work)
    assert len(net.requests) == 1


def test_a_slow_reader_is_not_a_slow_body() -> None:
    net = Network(lambda request: answer(request, *([bytes(1024)] * 1024)))

    async def work() -> None:
        async with client(net, config=CONFIG) as registry, blob(registry).open_range(0, SIZE) as pieces:
            size = 0
            async for piece in pieces:
                size += len(piece)
                await trio.sleep(60)
            assert size == SIZE

    simulate(work)
    assert len(net.requests) == 1


def test_headers_that_never_end_are_given_up() -> None:
    class Silent(Network):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            await trio.sleep_forever()
            raise AssertionError

    async def work() -> None:
        async with client(Silent(answer), config=CONFIG) as registry:
            with pytest.raises(RegistryUnreachable, match="no answer in time"):
                await blob(registry).read_range(0, 10)
        assert trio.current_time() < 5 * 50

    simulate(work)


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.RemoteProtocolError("cut"), httpx.ReadTimeout("")])
def test_progress_before_a_break_earns_new_tries(error: Exception) -> None:
    net = Network(lambda request: answer(request, bytes(64 << 10), error))

    async def work() -> None:
        async with client(net, config=CONFIG) as registry:
            assert len(await blob(registry).read_range(0, SIZE)) == SIZE
        assert trio.current_time() == 0

    simulate(work)
    assert len(net.requests) == 16


def test_every_body_is_closed_whatever_happened() -> None:
    bodies: list[Pieces] = []

    def handler(request: httpx.Request) -> httpx.Response:
        response = [
            lambda: httpx.Response(503, stream=Pieces([b"ill"])),
            lambda: httpx.Response(307, headers={"location": "/x"}, stream=Pieces([b"there"])),
            lambda: answer(request, b"x", httpx.ReadError("reset")),
            lambda: answer(request, bytes(5), bytes(500), 1.0, bytes(500)),
        ][min(len(bodies), 3)]()
        assert isinstance(response.stream, Pieces)
        bodies.append(response.stream)
        return response

    async def work() -> None:
        async with client(Network(handler), config=CONFIG) as registry:
            assert len(await blob(registry).read_range(0, 100)) == 100

    simulate(work)
    assert [body.closed for body in bodies] == [True] * len(bodies)
    assert len(bodies) == 4


def test_small_pieces_are_put_together_and_none_is_lost_in_a_break() -> None:
    data = bytes(range(256)) * (SIZE // 256)

    def handler(request: httpx.Request) -> httpx.Response:
        first = int(request.headers["range"].removeprefix("bytes=").split("-")[0])
        records = [data[at : at + 16_000] for at in range(first, SIZE, 16_000)]
        return (
            answer(request, *records[:9], httpx.ReadError("reset")) if len(records) > 9 else answer(request, *records)
        )

    net = Network(handler)

    async def work() -> None:
        async with client(net, config=CONFIG) as registry, blob(registry).open_range(0, SIZE) as pieces:
            found = [piece async for piece in pieces]
        assert b"".join(found) == data
        assert len(found) == 7 * 2 + 1

    simulate(work)
    ranges = [request.headers["range"] for request in net.requests]
    assert ranges[:2] == ["bytes=0-1048575", "bytes=144000-1048575"]
