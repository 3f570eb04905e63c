"""Ends a daemon at moments that nobody chose, and starts it again at once."""

import random
import signal
import threading
import time

from integration.harness.node import Node
from integration.harness.process import DidNotStart
from integration.soak.ledger import Ledger

LONGEST_START_S = 0.8
MOST_KILLS_IN_A_START = 2


class Killer:
    """Kills one node's daemon, which lives for up to `life_s`, until it is told to stop."""

    def __init__(self, name: str, node: Node, ledger: Ledger, *, seed: int, life_s: float) -> None:
        self.name = name
        self._served_at: float | None = time.monotonic()
        self._node = node
        self._ledger = ledger
        self._life_s = life_s
        self._dice = random.Random(f"{seed} {name}")

    def age_s(self) -> float:
        """How long the present daemon has served; below 0 while there is none."""
        served_at = self._served_at
        return -1.0 if served_at is None else time.monotonic() - served_at

    def run(self, stop: threading.Event) -> None:
        """A life of the daemon after the other; when this returns one is running."""
        while not stop.wait(self._dice.uniform(0.0, self._life_s)):
            self._served_at = None
            began = time.monotonic()
            try:
                self._end()
                self._node.daemon.start()
            except DidNotStart as error:
                self._ledger.fault(self.name, str(error))
                self._node.daemon.stop(signal.SIGKILL)
                self._node.daemon.start()
            self._served_at = time.monotonic()
            self._ledger.worst(f"longest time without a daemon on {self.name}, s", self._served_at - began)

    def _end(self) -> None:
        daemon = self._node.daemon
        how = self._dice.random()
        if how < 0.2:
            daemon.stop(signal.SIGTERM)
            self._ledger.count("terminations")
            return
        daemon.stop(signal.SIGKILL)
        self._ledger.count("kills")
        if how < 0.4:
            for _ in range(self._dice.randint(1, MOST_KILLS_IN_A_START)):
                daemon.begin()
                time.sleep(self._dice.uniform(0.0, LONGEST_START_S))
                daemon.stop(signal.SIGKILL)
                self._ledger.count("kills of a daemon that starts")
