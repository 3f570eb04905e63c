"""What a read does while a registry is away: `on_outage` of the configuration."""

import math
from dataclasses import dataclass

import trio

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0
"""A read that waits alone finds out so soon that its registry is back. Where many wait the breaker has one of them ask."""

LAST_TRY_S = 5.0
"""What the last attempt gets, however late it begins."""

PROGRESS_MIN = 16 << 10
"""So many bytes behind the furthest that came so far put the deadline off. Each attempt begins at the beginning: one that
breaks off always at the same place, or drips, would hold a reader for ever."""


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """How long a read waits for a registry that does not answer: 0 = not at all, infinity = until it is killed."""

    wait_s: float

    def pauses(self, start: int) -> "Pauses":
        """The pauses between one read's attempts; `start` is the offset in the blob at which it begins."""
        return Pauses(self.wait_s, start)


class Pauses:
    """Growing pauses that end at a deadline, which what arrives puts off."""

    def __init__(self, wait_s: float, start: int) -> None:
        self._wait_s = wait_s
        self._deadline = trio.current_time() + wait_s
        self._attempt = trio.CancelScope()
        self._next_s = FIRST_PAUSE_S
        self._furthest = start

    def attempt(self) -> trio.CancelScope:
        """A scope for one attempt, which ends it at the deadline: a registry that hangs must not outlast the wait.

        Without a wait an attempt takes what the registry's own timeouts and retries take.
        """
        last_try = max(self._deadline, trio.current_time() + LAST_TRY_S)
        self._attempt = trio.CancelScope(deadline=last_try if self._wait_s else math.inf)
        return self._attempt

    def progressed(self, position: int) -> None:
        """Bytes have come up to this offset in the blob: the wait begins anew if so many were not there before."""
        if self._wait_s and position >= self._furthest + PROGRESS_MIN:
            self._furthest = position
            self._deadline = self._attempt.deadline = trio.current_time() + max(self._wait_s, LAST_TRY_S)

    async def another(self) -> bool:
        """Sleep before the next attempt; False if there is no time for one."""
        left_s = self._deadline - trio.current_time()
        if left_s <= 0:
            return False
        await trio.sleep(min(self._next_s, left_s))
        self._next_s = min(self._next_s * 2, LONGEST_PAUSE_S)
        return True
