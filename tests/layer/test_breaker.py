"""One probe for all while a host is away."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from snapshotter.errors import RegistryUnreachable
from snapshotter.layer.breaker import FAILURES, PROBE_EVERY_S, Breaker


def tripped() -> Breaker:
    """A breaker that is open since now."""
    breaker = Breaker("registry.test")
    for _ in range(FAILURES):
        breaker.failed(probe=False)
    return breaker


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_fewer_failures_than_that_stop_nobody() -> None:
    async def main() -> None:
        breaker = Breaker("registry.test")
        for _ in range(FAILURES - 1):
            breaker.failed(probe=False)
        assert await breaker.admit(patient=False) is False
        breaker.answered()
        breaker.failed(probe=False)
        assert not breaker.open

    run(main)


def test_of_many_that_wait_one_asks_at_a_time_and_the_answer_frees_all() -> None:
    async def main() -> None:
        breaker, asked, admitted = tripped(), list[float](), 0

        async def fetch() -> None:
            nonlocal admitted
            if await breaker.admit(patient=True):
                asked.append(trio.current_time())
                if len(asked) < 4:
                    breaker.failed(probe=True)
                    await fetch()
                    return
                breaker.answered()
            admitted += 1

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(fetch)
        assert admitted == 50
        assert asked == [started + PROBE_EVERY_S * count for count in range(1, 5)]
        assert not breaker.open

    run(main)


def test_the_impatient_hear_at_once_that_the_host_is_away() -> None:
    async def main() -> None:
        breaker = tripped()
        with pytest.raises(RegistryUnreachable, match="in a row"):
            await breaker.admit(patient=False)
        await trio.sleep(PROBE_EVERY_S)
        assert await breaker.admit(patient=False) is True
        with pytest.raises(RegistryUnreachable):
            await breaker.admit(patient=False)

    run(main)


def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    async def main() -> None:
        breaker = tripped()
        with trio.move_on_after(PROBE_EVERY_S / 2):
            await breaker.admit(patient=True)
        with trio.fail_after(2 * PROBE_EVERY_S):
            assert await breaker.admit(patient=True) is True

    run(main)


def test_a_bulk_probe_that_hangs_holds_up_bulk_only() -> None:
    async def main() -> None:
        for patient in (True, False):
            breaker = tripped()
            await trio.sleep(PROBE_EVERY_S)
            assert await breaker.admit(patient=False, bulk=True) is True
            with pytest.raises(RegistryUnreachable):
                await breaker.admit(patient=False, bulk=True)
            with trio.fail_after(PROBE_EVERY_S):
                assert await breaker.admit(patient=patient) is True
            with pytest.raises(RegistryUnreachable):
                await breaker.admit(patient=False)
            breaker.answered()
            assert await breaker.admit(patient=False, bulk=True) is False

    run(main)
