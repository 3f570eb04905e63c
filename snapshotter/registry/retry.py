"""How often and how fast something is asked again."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import trio

from snapshotter.errors import RegistryUnreachable

# So many bytes count as progress. Fewer do not earn new attempts, or a server that drips bytes would hold a reader for ever.
PROGRESS_MIN = 16 << 10


class Transient(Exception):
    """A fault that may be gone the next time; `Attempts` turns it into RegistryUnreachable. The message has no secret."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Returned(Transient):
    """A server that was away answers again: what an earlier request still waits for should be asked for anew, at once."""


@dataclass(slots=True)
class RetryCounts:
    """What came of faults that may be gone the next time, since the start. Written on the trio thread."""

    repeated: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter: `retries` further tries without progress, waits in seconds.

    The longest is short: whoever sleeps does not see that the registry is back.
    """

    retries: int
    first_s: float = 0.1
    longest_s: float = 2.5
    retry_after_longest_s: float = 30.0
    jitter: Callable[[], float] = random.random
    counts: RetryCounts = field(default_factory=RetryCounts, compare=False)

    def delay_s(self, attempt: int, retry_after_s: float | None = None) -> float:
        """The wait before try `attempt` + 1, spread over half to one and a half times its nominal value.

        What the server asks for is honoured up to a cap: no answer may park a reader for an hour.
        """
        nominal = min(self.first_s * float(1 << min(attempt, 30)), self.longest_s)
        spread = nominal * (0.5 + self.jitter())
        if retry_after_s is None:
            return spread
        return max(spread, min(retry_after_s, self.retry_after_longest_s))


class Attempts:
    """The tries of one operation; progress earns new ones."""

    def __init__(self, policy: RetryPolicy, what: str) -> None:
        """`what` names the operation in the error."""
        self._policy = policy
        self._what = what
        self._failed = 0
        self._progress = 0

    def progressed(self, size: int) -> None:
        """`size` more bytes arrived."""
        self._progress += size

    async def pause(self, fault: Transient) -> None:
        """Wait before the next try; not at all after progress, when the server did not ask for a pause.

        Raises:
            RegistryUnreachable: this was the last try.
        """
        progressed, self._progress = self._progress >= PROGRESS_MIN, 0
        if progressed:
            self._failed = 0
            if fault.retry_after_s is None:
                self._policy.counts.repeated += 1
                await trio.lowlevel.checkpoint()
                return
        if self._failed >= self._policy.retries:
            self._policy.counts.given_up += 1
            tries = "once" if self._failed == 0 else f"{self._failed + 1} times"
            raise RegistryUnreachable(
                f"{self._what}: {fault} (tried {tries}); check that the node reaches the registry"
            ) from None
        delay_s = self._policy.delay_s(self._failed, fault.retry_after_s)
        self._failed += 1
        self._policy.counts.repeated += 1
        await trio.sleep(delay_s)


def parse_retry_after(value: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None without one or when it is nonsense.

    Source: RFC 9110 section 10.2.3.
    """
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(min(int(value[:12]), 1 << 32))
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now()).total_seconds())
