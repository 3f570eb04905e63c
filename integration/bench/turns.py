"""Measuring in turns, so that what else the machine does meets all that is compared alike."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDS = 5
SPLITS = 1000
SPREAD_QUANTILE = 0.95


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def in_turns(
    actions: Sequence[Callable[[], float]], before: Callable[[], object] = bool, rounds: int = ROUNDS
) -> list[list[float]]:
    """What each action gives in every round, each round in another order: what one leaves behind meets all others alike."""
    results: list[list[float]] = [[] for _ in actions]
    order = list(range(len(actions)))
    source = random.Random(rounds)
    for _ in range(rounds):
        source.shuffle(order)
        for which in order:
            before()
            results[which].append(actions[which]())
    return results


def alternate(
    native: Callable[[], float], lazy: Callable[[], float], before: Callable[[], object] = bool, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Medians of both."""
    one, other = in_turns((native, lazy), before, rounds)
    return statistics.median(one), statistics.median(other)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of the same work on a native copy, on a lazy one, and on another native copy, measured in turns."""

    native: Sequence[float]
    lazy: Sequence[float]
    again: Sequence[float]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians: of all native runs, of the lazy ones."""
        return statistics.median([*self.native, *self.again]), statistics.median(self.lazy)

    @property
    def ratio(self) -> float:
        """Median of the lazy runs ÷ median of all native ones."""
        native, lazy = self.seconds
        return lazy / native

    @property
    def copies(self) -> float:
        """The slower native copy's median ÷ the other's."""
        return _apart(self.native, self.again)

    @property
    def spread(self) -> float:
        """How far native runs lie from native runs, as a factor of at least 1.

        All of them, of both copies, are dealt out in two halves at random, many times, and the halves' medians are
        compared: in 95 of 100 deals the larger is at most so many times the smaller. A difference between the two copies
        alone (where on the disk they lie) counts too, if it is larger.
        """
        runs = [*self.native, *self.again]
        source = random.Random(len(runs))
        found = []
        for _ in range(SPLITS):
            source.shuffle(runs)
            found.append(_apart(runs[::2], runs[1::2]))
        return max(self.copies, sorted(found)[int(SPREAD_QUANTILE * SPLITS)])


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    first, second = statistics.median(one), statistics.median(other)
    return max(first, second) / min(first, second)
