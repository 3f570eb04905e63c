"""What `on_outage` means."""

import pytest
import trio
import trio.testing

from snapshotter.layer.outage import OutagePolicy


def attempts_until_given_up(policy: OutagePolicy) -> tuple[int, float]:
    async def main() -> tuple[int, float]:
        started = trio.current_time()
        pauses = policy.pauses()
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
    assert 10 < attempts < 30
