"""Which servers answered last: one that did not is asked after the others for a while; and what each of them said."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from snapshotter.registry.auth import Need

FIRST_S = 5.0
LONGEST_S = 60.0
"""How long a server is passed over: twice as long after each failure, up to this."""

SERVERS_KEPT = 200

COMPLAINTS_TOLD = 3
COMPLAINT_MAX = 300
"""How many other servers an error tells of, and how much of each in characters."""

T = TypeVar("T")


@dataclass(slots=True)
class _Sick:
    """A server that did not answer; it is its turn again at `due`."""

    failures: int
    due: float


@dataclass(slots=True)
class Knocking:
    """One knock at a server, for all who want to know; `came` stays None if who made it was cancelled."""

    began: float
    ended: trio.Event = field(default_factory=trio.Event)
    came: bool | None = None


class Health:
    """Used on the trio thread. Nobody is left out for good: where all are sick, all are asked in their order."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._sick: dict[str, _Sick] = {}
        self._asked: dict[str, None] = {}
        self.knocks: dict[str, Knocking] = {}
        """The newest of each server, by its base."""

    def ordered(self, items: Iterable[T], need: Callable[[T], Need]) -> list[T]:
        """Those in good health in their order, then the sick ones in theirs. One whose time is over has its own place again."""
        return sorted(items, key=lambda item: not self.is_well(need(item)))

    def is_well(self, need: Need) -> bool:
        """Whether it is asked in its own place."""
        sick = self._sick.get(need.endpoint.base)
        return sick is None or sick.due <= self._clock()

    def is_sick(self, need: Need) -> bool:
        """Whether it failed when it was asked last."""
        return need.endpoint.base in self._sick

    def asking(self, need: Need) -> None:
        """It is asked now. Of a sick one whose time is over the others learn from this request: they pass it over meanwhile."""
        sick = self._sick.get(need.endpoint.base)
        if sick is not None and sick.due <= (now := self._clock()):
            sick.due = now + _pause_s(sick.failures)

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
        """Each server that was asked lately, as host and port: whether it failed to answer the last time. From any thread."""
        found: dict[str, bool] = {}
        for base in list(self._asked):
            host = base.partition("://")[2]
            # One that is tried over https and over http is well if one of them is.
            found[host] = base in self._sick and found.get(host, True)
        return found

    def _note(self, base: str) -> None:
        self._asked.pop(base, None)
        self._asked[base] = None
        if len(self._asked) > SERVERS_KEPT:
            oldest = next(iter(self._asked))
            del self._asked[oldest]
            self._sick.pop(oldest, None)


class Complaints:
    """What the servers of one operation said, each its last word: who reads the error may have to mend any of them."""

    def __init__(self) -> None:
        self._said: dict[str, Exception] = {}

    def note(self, need: Need, error: Exception) -> None:
        """`error` came of asking this server."""
        self._said.pop(need.endpoint.base, None)
        self._said[need.endpoint.base] = error

    def beside(self, error: Exception) -> str:
        """The words of `error`, and those of the other servers."""
        others = [f"{base}: {said}" for base, said in self._said.items() if said is not error]
        told = [other if len(other) <= COMPLAINT_MAX else f"{other[:COMPLAINT_MAX]}…" for other in others]
        return f"{error}" + (f" (asked as well: {'; '.join(told[:COMPLAINTS_TOLD])})" if told else "")


def _pause_s(failures: int) -> float:
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 10))
