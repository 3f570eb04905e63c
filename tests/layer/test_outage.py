"""What `on_outage` means."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from snapshotter.errors import RegistryUnreachable
from snapshotter.layer import flights, outage
from snapshotter.layer.breaker import PROBE_EVERY_S, Breaker
from snapshotter.layer.outage import OutagePolicy
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import QUIET, run, world

WAITING = replace(QUIET, fetch=replace(QUIET.fetch, on_outage="wait:1s"))


def attempts_until_given_up(policy: OutagePolicy) -> tuple[int, float]:
    async def main() -> tuple[int, float]:
        started = trio.current_time()
        pauses = policy.pauses(0)
        count = 1
        while await pauses.another():
            count += 1
        return count, trio.current_time() - started

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_error_gives_up_after_one_attempt() -> None:
    assert attempts_until_given_up(OutagePolicy(0.0)) == (1, 0.0)


def test_waiting_ends_at_its_deadline() -> None:
    attempts, waited_s = attempts_until_given_up(OutagePolicy(60.0))
    assert waited_s == pytest.approx(60.0)
    assert 10 < attempts < 40


def longest_after_return(away_s: float, readers: int) -> float:
    """Seconds from the return of a host that refuses at once until the last of those who wait has asked it again."""

    async def main() -> float:
        breaker, back, served = Breaker("registry.test"), trio.current_time() + away_s, list[float]()

        async def read() -> None:
            pauses = OutagePolicy(math.inf).pauses(0)
            while True:
                probe = await breaker.admit(patient=True)
                if trio.current_time() >= back:
                    breaker.answered()
                    served.append(trio.current_time())
                    return
                breaker.failed(probe=probe)
                assert await pauses.another()

        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(read)
        return max(served) - back

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("away_s", [0.3, 7.7, 60.0, 180.9, 3600.4])
@pytest.mark.parametrize("readers", [1, 2, 50])
def test_readers_go_on_within_seconds_however_long_the_registry_was_away(away_s: float, readers: int) -> None:
    assert longest_after_return(away_s, readers) <= outage.LONGEST_PAUSE_S + PROBE_EVERY_S


def end_of_attempt(pause_s: float, count: int, wait_s: float, piece: int = outage.PROGRESS_MIN) -> float:
    """When an attempt of 1000 s and more is cut off to which pieces come so often; infinite if it is not."""

    async def main() -> float:
        started = trio.current_time()
        pauses = OutagePolicy(wait_s).pauses(7)
        with pauses.attempt() as attempt:
            for number in range(count):
                await trio.sleep(pause_s)
                pauses.progressed(7 + (number + 1) * piece)
            await trio.sleep(1000)
        return trio.current_time() - started if attempt.cancelled_caught else math.inf

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_attempt_that_brings_nothing_ends_with_the_wait() -> None:
    assert end_of_attempt(1.0, 0, 60.0) == pytest.approx(60.0)


def test_attempt_that_brings_something_goes_on() -> None:
    assert end_of_attempt(50.0, 10, 60.0) == pytest.approx(560.0)


def test_attempt_that_brings_next_to_nothing_ends_with_the_wait() -> None:
    assert end_of_attempt(1.0, 500, 60.0, piece=30) == pytest.approx(60.0)


def test_attempts_that_all_break_at_one_place_end_with_the_wait() -> None:
    async def main() -> float:
        started = trio.current_time()
        pauses = OutagePolicy(60.0).pauses(7)
        while await pauses.another():
            with pauses.attempt():
                await trio.sleep(1)
                pauses.progressed(7 + 3 * outage.PROGRESS_MIN)
        return trio.current_time() - started

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) < 130


def test_attempt_without_a_wait_has_the_registrys_own_deadlines() -> None:
    assert end_of_attempt(1.0, 0, 0.0) == math.inf


def test_registry_that_hangs_fails_a_read_when_the_wait_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "LAST_TRY_S", 0.1)
    built, registry = layer(file("x", b"text")), MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry, WAITING) as it:
            (one,) = await it.pull(built)
            registry.hold = trio.Event()
            with trio.fail_after(10), pytest.raises(RegistryUnreachable, match="on_outage"):
                await it.read(one, "x")
            assert "on_outage" in it.room.counters.hosts["registry.test"]

    run(main)


def test_outage_that_was_waited_out_is_not_waited_for_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel asks for a page once more when reading ahead has failed, and its second wait cannot be killed."""
    monkeypatch.setattr(outage, "LAST_TRY_S", 0.1)
    built, registry = layer(file("x", b"text"), file("y", b"more")), MemoryRegistry()
    clock, lose = trio.testing.MockClock(rate=1.0), flights.Flights._lose

    def lose_for_as_long_as_it_takes(one: flights.Flights, *what: Any) -> None:
        clock.rate = 0.0
        lose(one, *what)

    monkeypatch.setattr(flights.Flights, "_lose", lose_for_as_long_as_it_takes)

    async def main() -> None:
        async with world(tmp_path / "root", registry, WAITING) as it:
            (one,) = await it.pull(built)
            registry.hold = trio.Event()
            with pytest.raises(RegistryUnreachable):
                await it.read(one, "x")
            registry.hold, asked = None, len(registry.requests)
            with pytest.raises(RegistryUnreachable):
                await it.read(one, "x")
            assert len(registry.requests) == asked
            assert await it.read(one, "y") == b"more"
            clock.jump(flights.LOST_FOR_S)
            assert await it.read(one, "x") == b"text"

    run(main, clock)
