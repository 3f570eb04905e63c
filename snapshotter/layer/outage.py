"""What a read does while a registry is away: `on_outage` of the configuration."""

import math
from dataclasses import dataclass

import trio

from snapshotter.errors import ConfigError

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


def parse_outage(text: str) -> OutagePolicy:
    """`error`, `wait`, `wait:60s` or `wait:5m` as a policy. Raises ConfigError."""
    if text == "error":
        return OutagePolicy(0.0)
    if text == "wait":
        return OutagePolicy(math.inf)
    kind, _, amount = text.partition(":")
    unit = {"s": 1, "m": 60}.get(amount[-1:])
    if kind == "wait" and unit and amount[:-1].isdecimal():
        return OutagePolicy(float(int(amount[:-1]) * unit))
    raise ConfigError(f"on_outage is {text!r}; write error, wait, or wait:<number>s or m, such as wait:60s")
