"""What a soak has found and done so far; written by many threads."""

import re
import threading
from collections import Counter

MOST_FAULTS = 200
_CHANGING = re.compile(r"""["'][^"']*["']|extract-\S+|/\S*|sha256:\S+|[0-9a-f]{8,}|\d+""")


class Ledger:
    """Faults with the place where they were found, and counts of everything else."""

    def __init__(self) -> None:
        # Guards all below.
        self._lock = threading.Lock()
        self._faults: list[str] = []
        self._counts: Counter[str] = Counter()
        self._worst: dict[str, float] = {}

    def fault(self, where: str, what: str) -> None:
        """Something that must not happen."""
        with self._lock:
            self._counts["faults"] += 1
            if len(self._faults) < MOST_FAULTS:
                self._faults.append(f"{where}: {what}")
        print(f"soak: FAULT: {where}: {what}", flush=True)

    def count(self, what: str, number: int = 1) -> None:
        """Something that happened."""
        with self._lock:
            self._counts[what] += number

    def refusal(self, what: str, words: str) -> None:
        """A call that failed and was repeated; the count says why, without what differs each time."""
        self.count(f"refused: {what}: {_CHANGING.sub('…', words)[:300]}")

    def worst(self, what: str, value: float) -> None:
        """Keep the largest."""
        with self._lock:
            self._worst[what] = max(value, self._worst.get(what, 0.0))

    @property
    def faults(self) -> list[str]:
        with self._lock:
            return list(self._faults)

    @property
    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(self._counts)

    @property
    def worsts(self) -> dict[str, float]:
        with self._lock:
            return dict(self._worst)
