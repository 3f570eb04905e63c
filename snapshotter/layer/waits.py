"""Who waits for the network at this moment: reads of files, and processes at the gate.

Touched only where something really waits, so that a read of what is on the node pays nothing for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice

import trio

from snapshotter.layer.counters import WAIT_BOUNDS_S, Histogram


@dataclass(frozen=True, slots=True)
class Wait:
    """One request of the kernel that waits for content.

    A read waits in a layer for one of its nodes, and nobody tells us for which process. A lookup at the gate waits for a
    content whose layer is not known (`layer` is 0), for the thread `pid`.
    """

    began: float
    """By the clock of `Waits`."""
    domain: str
    digest: bytes
    """The raw digest of the file's content."""
    layer: int = 0
    node: int = 0
    pid: int = 0

    @property
    def is_lookup(self) -> bool:
        """Whether a process waits at the gate."""
        return self.layer == 0


class Waits:
    """All that wait on this node, the longest first. Used on the trio thread only; a wait costs the same however many."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._numbers = count()
        # In the order in which they began: a dict keeps it.
        self._open: dict[int, Wait] = {}
        self._lookups = 0
        self.read_times = Histogram.over(WAIT_BOUNDS_S)
        """How long the reads waited whose wait is over."""
        self.lookup_times = Histogram.over(WAIT_BOUNDS_S)
        """How long processes waited at the gate."""

    @contextmanager
    def read(self, domain: str, digest: bytes, layer: int, node: int) -> Iterator[None]:
        """Around the wait of one read."""
        with self._noted(Wait(self._clock(), domain, digest, layer, node), self.read_times):
            yield

    @contextmanager
    def lookup(self, domain: str, digest: bytes, pid: int) -> Iterator[None]:
        """Around the wait of thread `pid` at the gate."""
        self._lookups += 1
        try:
            with self._noted(Wait(self._clock(), domain, digest, pid=pid), self.lookup_times):
                yield
        finally:
            self._lookups -= 1

    @contextmanager
    def _noted(self, wait: Wait, times: Histogram) -> Iterator[None]:
        number = next(self._numbers)
        self._open[number] = wait
        try:
            yield
        finally:
            del self._open[number]
            times.observe(self._clock() - wait.began)

    @property
    def reads(self) -> int:
        """How many reads wait."""
        return len(self._open) - self._lookups

    @property
    def lookups(self) -> int:
        """How many processes wait at the gate."""
        return self._lookups

    def longest(self, most: int) -> tuple[Wait, ...]:
        """At most `most` waits, the longest first."""
        return tuple(islice(self._open.values(), most))
