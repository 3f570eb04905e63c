"""What `on_outage` means."""

import math

import pytest
import trio
import trio.testing

from snapshotter.errors import ConfigError
from snapshotter.layer.outage import OutagePolicy, parse_outage


@pytest.mark.parametrize(
    ("text", "wait_s"), [("error", 0.0), ("wait", math.inf), ("wait:60s", 60.0), ("wait:5m", 300.0)]
)
def test_each_policy_is_read(text: str, wait_s: float) -> None:
    assert parse_outage(text).wait_s == wait_s


@pytest.mark.parametrize("text", ["", "wait:", "wait:s", "wait:-1s", "wait:1h", "retry", "wait:60"])
def test_other_words_are_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(ConfigError, match="wait:60s"):
        parse_outage(text)


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
