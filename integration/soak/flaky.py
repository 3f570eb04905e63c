"""A registry that fails now and then, in a different way each time, and is away for seconds, as registries are.

It stands where hosts.toml leads the daemon; containerd asks the real one.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.doubles.registry import LoopbackRegistry
from tests.doubles.relay import Relay
from tests.doubles.script import OK, Behaviour, parse_script
from tests.doubles.server import Recorded

SHARE = 0.06
"""Of the requests that fail."""

KINDS = (
    *("503", "503@1", "429@1", "500", "close", "slow@0.5", "cut@1000", "cut@100000", "short@5000", "cut-in-headers"),
    *("reset", "reset-in-body@3000", "stall@2000", "hang", "chunked-cut", "garbage"),
)
WRONG = ("corrupt", "flip@2000", "zeros", "no-range", "page")
"""Wrong bytes in a right answer, or no answer at all: asked for once more, and then an I/O error, as it should be."""

WRONG_AGAIN_AFTER = 30
"""So many requests for a blob must have gone well before another one goes wrong like that."""

LONGEST_CALM_S = 40.0
LONGEST_DELAY_S = 0.03
AWAY = ("close", "503", "hang")


class FlakyRegistry(LoopbackRegistry):
    """While `away` is set every request meets with it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.away = ""
        self.failed = 0
        self.outages = 0
        self._dice = random.Random(seed)
        self._well: dict[str, int] = {}

    def record(self, record: Recorded) -> None:
        """Nothing is kept: a soak is long."""

    def _next(self, record: Recorded) -> Behaviour:
        with self._lock:
            if self.away:
                self.failed += 1
                return next(parse_script(self.away))
            well = self._well.get(record.path, 0)
            if self._dice.random() >= SHARE:
                self._well[record.path] = well + 1
                return OK
            self.failed += 1
            word = self._dice.choice((*KINDS, *WRONG) if well >= WRONG_AGAIN_AFTER else KINDS)
            if word in WRONG:
                self._well[record.path] = 0
            return next(parse_script(word))


class FlakyLine:
    """The registry and the line that leads to it: delays that change, connections that break, outages of up to `outage_s`."""

    def __init__(self, registry: FlakyRegistry, relay: Relay, seed: int, outage_s: float) -> None:
        self.registry = registry
        self.relay = relay
        self._dice = random.Random(seed)
        self._outage_s = outage_s

    def run(self, stop: threading.Event) -> None:
        """Have something happen to the line until `stop`."""
        while not stop.wait(self._dice.uniform(0.5, 4.0)):
            self.relay.delay_s = self._dice.choice((0.0, 0.0, self._dice.uniform(0, LONGEST_DELAY_S)))
            if self._dice.random() < 0.3:
                self.relay.drop_all()
            if self._dice.random() < 4.0 / LONGEST_CALM_S:
                self._be_away(stop)

    def _be_away(self, stop: threading.Event) -> None:
        self.registry.outages += 1
        self.registry.away = self._dice.choice(AWAY)
        self.relay.drop_all()
        stop.wait(self._dice.uniform(0.1, 1.0) * self._outage_s)
        self.registry.away = ""
        # Those that hang would do so for ever.
        self.relay.drop_all()


@contextmanager
def flaky_line(seed: int, outage_s: float) -> Iterator[FlakyLine]:
    """A running one, still without blobs."""
    with FlakyRegistry(seed) as registry, Relay("127.0.0.1", registry.port) as relay:
        yield FlakyLine(registry, relay, seed, outage_s)
