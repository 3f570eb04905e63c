"""A server that comes back is asked at once, also by those whose request it will never answer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryUnreachable
from snapshotter.registry.client import Registry
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.knock import EVERY_S, LONGEST_S, SICK_S, WELL_S
from snapshotter.registry.retry import RetryPolicy
from tests.registry.memory import Known, Network, simulate
from tests.registry.servers import DATA, blob, serve

SOON_S = 5.0
"""What the issue promises: a registry that is back is read from within this."""
FAR_S = 1000.0
MANY = 60


class Away(Network):
    """Servers by host: until `back[host]` a request to one is never answered, or refused at once where `refusing`.

    A request that was made before does not get its answer when the server is back. `slow_s` is how long blobs take, `slow_knocks_s` the knocks.
    """

    def __init__(
        self,
        back: dict[str, float],
        *,
        refusing: bool = False,
        slow_s: float = 0.0,
        slow_knocks_s: Sequence[float] = (),
    ) -> None:
        super().__init__(lambda request: serve(request) if "range" in request.headers else httpx.Response(200))
        self.back = back
        self.refusing = refusing
        self.slow_s = slow_s
        self.slow_knocks_s = list(slow_knocks_s)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if trio.current_time() < self.back[request.url.host]:
            self.requests.append(request)
            if self.refusing:
                raise httpx.ConnectError("refused")
            await trio.sleep(request.extensions["timeout"]["read"])
            raise httpx.ReadTimeout("no answer")
        if "range" in request.headers:
            await trio.sleep(self.slow_s)
        elif self.slow_knocks_s:
            await trio.sleep(self.slow_knocks_s.pop(0))
        return await super().handle_async_request(request)


class Site:
    """The same servers for every registry."""

    def __init__(self, *hosts: str) -> None:
        self._endpoints = [Endpoint(f"https://{host}", "r.test", namespace="r.test") for host in hosts[:-1]]
        self._endpoints.append(Endpoint(f"https://{hosts[-1]}", "r.test"))

    def endpoints(self, _host: str) -> list[Endpoint]:
        return self._endpoints


@asynccontextmanager
async def registry(network: Network, *hosts: str, retries: int = 4) -> AsyncIterator[Registry]:
    """A client with the usual timeouts."""
    config = RegistryConfig(retries=retries)
    policy = RetryPolicy(retries, jitter=lambda: 0.5)
    async with Registry(config, hosts=Site(*hosts), credentials=Known(None), transport=network, policy=policy) as made:
        yield made


async def read_at_last(one: Registry) -> float:
    """Read as a waiting reader does, until it succeeds; the time at which it did."""
    data = blob(one)
    while True:
        try:
            assert await data.read_range(0, 10) == DATA[:10]
        except RegistryUnreachable:
            await trio.sleep(2.0)  # the longest pause between a read's attempts
        else:
            return trio.current_time()


def read_after(network: Away, *hosts: str) -> float:
    """Seconds between the return of the first server and the end of a read that has waited for it since 0."""
    found: list[float] = []

    async def work() -> None:
        async with registry(network, *hosts) as one:
            found.append(await read_at_last(one))

    simulate(work)
    return found[0] - min(network.back.values())


AGES_S = [0.5, 2.9, 4.0, 19.0, 24.7, 60.0, 180.0, 181.3, 183.0, 200.5]


@pytest.mark.parametrize("away_s", AGES_S)
@pytest.mark.parametrize("refusing", [False, True])
@pytest.mark.parametrize("hosts", [("r.test",), ("m.test", "r.test"), ("m.test", "n.test", "r.test")])
def test_a_read_that_waits_ends_soon_after_the_return_of_any_server(
    away_s: float, refusing: bool, hosts: tuple[str, ...]
) -> None:
    for returning in hosts:
        back = dict.fromkeys(hosts, FAR_S) | {returning: away_s}
        assert read_after(Away(back, refusing=refusing), *hosts) < SOON_S


def test_a_slow_server_is_waited_for_though_it_answers_knocks() -> None:
    network = Away({"r.test": 0.0}, slow_s=18.0)
    assert read_after(network, "r.test") == pytest.approx(18.0)


def test_a_slow_server_that_was_away_is_not_given_up_for_ever() -> None:
    network = Away({"r.test": 30.0}, slow_s=18.0)
    assert read_after(network, "r.test") < 18.0 + SOON_S


def test_a_server_whose_every_answer_takes_longer_than_a_knock_waits_is_read_all_the_same() -> None:
    network = Away({"r.test": 0.0}, slow_s=18.0, slow_knocks_s=[0.2, 3.0, 0.2, 3.0, 3.0, 0.2] * 100)

    async def work() -> None:
        async with registry(network, "r.test", retries=0) as one:
            for _ in range(5):
                assert await blob(one).read_range(0, 10) == DATA[:10]

    simulate(work)


def test_a_sick_mirror_that_hangs_costs_little_where_another_server_answers() -> None:
    network = Away({"m.test": FAR_S, "r.test": 0.0})
    took: list[float] = []

    async def work() -> None:
        async with registry(network, "m.test", "r.test") as one:
            for _ in range(3):
                began = trio.current_time()
                assert await blob(one).read_range(0, 10) == DATA[:10]
                took.append(trio.current_time() - began)
                await trio.sleep(70.0)  # its turn comes again

    simulate(work)
    assert max(took[1:]) < SICK_S + LONGEST_S


def test_nobody_is_knocked_at_while_answers_come_at_once() -> None:
    network = Away({"r.test": 0.0}, slow_s=WELL_S - 0.1)
    read_after(network, "r.test")
    assert len(network.requests) == 1


def test_knocks_carry_no_credential_and_are_few() -> None:
    network = Away({"r.test": 15.0})
    read_after(network, "r.test")
    knocks = [request for request in network.requests if "range" not in request.headers]
    assert {request.url.path for request in knocks} == {"/v2/"}
    assert not [request for request in knocks if "authorization" in request.headers]
    assert len(knocks) <= 15.0 / EVERY_S


def test_reader_that_is_cancelled_while_it_listens_leaves_nothing_behind() -> None:
    network = Away({"r.test": FAR_S})

    async def work() -> None:
        async with registry(network, "r.test") as one:
            with trio.move_on_after(10.0) as scope:
                await blob(one).read_range(0, 10)
            assert scope.cancelled_caught
            asked = len(network.requests)
            await trio.sleep(100.0)
            assert len(network.requests) == asked

    simulate(work)


@pytest.mark.parametrize("refusing", [False, True])
def test_of_many_who_wait_one_knocks_for_all_and_all_read_soon_after_the_return(refusing: bool) -> None:
    away_s = 15.0
    network = Away({"r.test": away_s}, refusing=refusing)

    async def work() -> None:
        async with registry(network, "r.test") as one, trio.open_nursery() as nursery:

            async def reader(after_s: float) -> None:
                await trio.sleep(after_s)
                assert await read_at_last(one) < away_s + SOON_S

            for number in range(MANY):
                nursery.start_soon(reader, number / MANY)

    simulate(work)
    knocks = [request for request in network.requests if "range" not in request.headers]
    assert len(knocks) <= (away_s + SOON_S) / EVERY_S


def test_when_the_one_that_knocks_is_cancelled_another_goes_on() -> None:
    network = Away({"r.test": 30.0})

    async def work() -> None:
        async with registry(network, "r.test") as one, trio.open_nursery() as nursery:
            for number in range(MANY):
                scope = trio.CancelScope(deadline=trio.current_time() + SICK_S + number / 3)
                nursery.start_soon(read_within, one, scope)
            assert await read_at_last(one) < 30.0 + SOON_S

    async def read_within(one: Registry, scope: trio.CancelScope) -> None:
        with scope:
            await read_at_last(one)

    simulate(work)
