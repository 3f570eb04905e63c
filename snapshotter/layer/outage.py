"""What a read does while a registry is away: `on_outage` of the configuration."""

from dataclasses import dataclass

import trio

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """How long a read waits for a registry that does not answer: 0 = not at all, infinity = until it is killed."""

    wait_s: float

    def pauses(self) -> "Pauses":
        """The pauses between one read's attempts."""
        return Pauses(trio.current_time() + self.wait_s)


class Pauses:
    """Growing pauses that end at a deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._next_s = FIRST_PAUSE_S

    async def another(self) -> bool:
        """Sleep before the next attempt; False if there is no time for one."""
        left_s = self._deadline - trio.current_time()
        if left_s <= 0:
            return False
        await trio.sleep(min(self._next_s, left_s))
        self._next_s = min(self._next_s * 2, LONGEST_PAUSE_S)
        return True
