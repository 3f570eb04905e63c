"""Back-off, Retry-After, and what counts as progress."""

from datetime import UTC, datetime

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import RegistryUnreachable
from snapshotter.registry.retry import PROGRESS_MIN, Attempts, RetryPolicy, Transient, parse_retry_after
from tests.registry.memory import simulate

NOON = datetime(2024, 6, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("17", 17.0),
        ("Sat, 01 Jun 2024 12:00:30 GMT", 30.0),
        ("Sat, 01 Jun 2024 11:00:00 GMT", 0.0),
        ("Sat, 01 Jun 2024 12:00:30", 30.0),
        ("soon", None),
        ("-5", None),
        ("Sat, 99 Jun 99999 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, lambda: NOON) == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_a_wait_or_nothing(value: str) -> None:
    assert (parse_retry_after(value, lambda: NOON) or 0.0) >= 0.0


def test_waits_double_up_to_their_longest() -> None:
    policy = RetryPolicy(9, first_s=1, longest_s=10, jitter=lambda: 0.5)
    assert [policy.delay_s(attempt) for attempt in range(6)] == [1, 2, 4, 8, 10, 10]


def test_jitter_spreads_from_half_to_one_and_a_half() -> None:
    assert RetryPolicy(1, first_s=1, jitter=lambda: 0.0).delay_s(0) == 0.5
    assert RetryPolicy(1, first_s=1, jitter=lambda: 1.0).delay_s(0) == 1.5


def test_retry_after_is_honoured_up_to_its_cap() -> None:
    policy = RetryPolicy(1, first_s=1, retry_after_longest_s=30, jitter=lambda: 0.5)
    assert [policy.delay_s(0, wait) for wait in (0, 7, 3600)] == [1, 7, 30]


def test_tries_end_in_unreachable_with_the_last_fault() -> None:
    async def work() -> None:
        attempts = Attempts(RetryPolicy(3, first_s=0.5, jitter=lambda: 0.5), "blob x")
        for _ in range(3):
            await attempts.pause(Transient("no answer"))
        assert trio.current_time() == pytest.approx(0.5 + 1 + 2)
        with pytest.raises(RegistryUnreachable, match=r"blob x: broken \(tried 4 times\)"):
            await attempts.pause(Transient("broken"))

    simulate(work)


def test_progress_earns_new_tries_and_no_wait() -> None:
    async def work() -> None:
        attempts = Attempts(RetryPolicy(1), "blob x")
        for _ in range(50):
            attempts.progressed(PROGRESS_MIN)
            await attempts.pause(Transient("cut"))
        assert trio.current_time() == 0

    simulate(work)


def test_a_drip_is_no_progress() -> None:
    async def work() -> None:
        attempts = Attempts(RetryPolicy(2), "blob x")
        with pytest.raises(RegistryUnreachable):
            for _ in range(3):
                attempts.progressed(PROGRESS_MIN - 1)
                await attempts.pause(Transient("cut"))

    simulate(work)


def test_retries_and_what_was_given_up_are_counted_over_all_operations() -> None:
    async def work() -> None:
        policy = RetryPolicy(2)
        for _ in range(2):
            attempts = Attempts(policy, "blob x")
            with pytest.raises(RegistryUnreachable):
                for _ in range(3):
                    await attempts.pause(Transient("no answer"))
        attempts = Attempts(policy, "blob y")
        attempts.progressed(PROGRESS_MIN)
        await attempts.pause(Transient("cut"))
        assert (policy.counts.repeated, policy.counts.given_up) == (5, 2)

    simulate(work)
