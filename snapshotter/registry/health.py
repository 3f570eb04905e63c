"""Which servers answered last: one that did not is asked after the others for a while."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import trio

from snapshotter.registry.auth import Need

FIRST_S = 5.0
LONGEST_S = 60.0
"""How long a server is passed over: twice as long after each failure, up to this."""

SERVERS_KEPT = 200

T = TypeVar("T")


@dataclass(slots=True)
class _Sick:
    """A server that did not answer; it is its turn again at `due`."""

    failures: int
    due: float


class Health:
    """Used on the trio thread. Nobody is left out for good: where all are sick, all are asked in their order."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._sick: dict[str, _Sick] = {}
        self._asked: dict[str, None] = {}

    def ordered(self, items: Iterable[T], need: Callable[[T], Need]) -> list[T]:
        """Those in good health in their order, then the sick ones in theirs.

        One whose time is over is tried in its own place by who comes first; the others pass it over until that is known.
        """
        now = self._clock()
        well: list[T] = []
        ill: list[T] = []
        for item in items:
            sick = self._sick.get(need(item).endpoint.base)
            if sick is not None and sick.due > now:
                ill.append(item)
                continue
            if sick is not None:
                sick.due = now + _pause_s(sick.failures)
            well.append(item)
        return well + ill

    def answered(self, need: Need) -> None:
        """It sent something that is of use."""
        self._sick.pop(need.endpoint.base, None)
        self._note(need.endpoint.base)

    def failed(self, need: Need) -> None:
        """No answer, or no trust."""
        base = need.endpoint.base
        failures = self._sick[base].failures + 1 if base in self._sick else 1
        self._sick[base] = _Sick(failures, self._clock() + _pause_s(failures))
        self._note(base)

    def sick(self) -> Mapping[str, bool]:
        """Each server that was asked lately, as host and port: whether it is passed over."""
        now = self._clock()
        return {base.partition("://")[2]: base in self._sick and self._sick[base].due > now for base in self._asked}

    def _note(self, base: str) -> None:
        self._asked.pop(base, None)
        self._asked[base] = None
        if len(self._asked) > SERVERS_KEPT:
            oldest = next(iter(self._asked))
            del self._asked[oldest]
            self._sick.pop(oldest, None)


def _pause_s(failures: int) -> float:
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 10))
