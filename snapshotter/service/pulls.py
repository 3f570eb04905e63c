"""What became of each layer of a pull, said in one line of the log when the pull is through.

The reason why a layer is not lazy is kept with its snapshot; this is for whoever reads the log.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from snapshotter.errors import Reason
from snapshotter.request import LayerRequest

_log = logging.getLogger(__name__)

# A pull that broke off is never told to us; its line is written when this many others wait, or after this time.
_MAX_OPEN = 64
_MAX_AGE_NS = 900 * 10**9


class Outcome(StrEnum):
    """How a layer of a pull ended."""

    LAZY = "lazy"
    PRESENT = "present"
    ORDINARY = "ordinary"


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """How one layer ended; `reason` and `message` say why it is ordinary."""

    layer: str
    outcome: Outcome
    reason: Reason | None = None
    message: str | None = None

    def __str__(self) -> str:
        return f"{self.layer} {self.outcome}" + (f" ({self.reason})" if self.reason else "")


@dataclass(slots=True)
class _OpenPull:
    reference: str
    began_ns: int
    layers: list[LayerOutcome] = field(default_factory=list)


class PullLog:
    """Collects the outcomes of layers by image until the image's last layer was asked for."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()  # guards _open and _results
        self._open: OrderedDict[tuple[str, str, str], _OpenPull] = OrderedDict()
        self._results: Counter[tuple[Outcome, Reason | None]] = Counter()

    def results(self) -> dict[tuple[Outcome, Reason | None], int]:
        """How many layers ended in which way since the start, by outcome and reason; from any thread."""
        with self._lock:
            return dict(self._results)

    def note(self, request: LayerRequest, outcome: LayerOutcome) -> None:
        """Take the outcome of one layer of an image. The last layer's label names no other layer than itself."""
        key = (request.namespace, request.reference, request.manifest_digest or "")
        finished = []
        with self._lock:
            self._results[outcome.outcome, outcome.reason] += 1
            pull = self._open.get(key)
            if pull is not None and any(earlier.layer == outcome.layer for earlier in pull.layers):
                finished.append(self._open.pop(key))  # the image is pulled anew
                pull = None
            if pull is None:
                pull = self._open[key] = _OpenPull(request.reference, self._clock_ns())
            pull.layers.append(outcome)
            if len(set(request.image_layers)) == 1:
                finished.append(self._open.pop(key))
            finished += self._overdue()
        for done in finished:
            _say(done)

    def note_unknown(self, reference: str, outcome: LayerOutcome) -> None:
        """Take the outcome of a layer whose labels could not be read; `reference` is "" where they name none."""
        with self._lock:
            self._results[outcome.outcome, outcome.reason] += 1
        _say(_OpenPull(reference, self._clock_ns(), [outcome]))

    def close(self) -> None:
        """Write the lines of pulls that are not through."""
        with self._lock:
            unfinished, self._open = list(self._open.values()), OrderedDict()
        for pull in unfinished:
            _say(pull)

    def _overdue(self) -> list[_OpenPull]:
        overdue = []
        oldest_ns = self._clock_ns() - _MAX_AGE_NS
        while self._open:
            key, pull = next(iter(self._open.items()))
            if len(self._open) <= _MAX_OPEN and pull.began_ns >= oldest_ns:
                break
            overdue.append(self._open.pop(key))
        return overdue


def _say(pull: _OpenPull) -> None:
    ordinary = sum(layer.outcome is Outcome.ORDINARY for layer in pull.layers)
    _log.info(
        "pull of %s: %d layers, %d not lazy: %s",
        pull.reference or "an image without a name",
        len(pull.layers),
        ordinary,
        ", ".join(map(str, pull.layers)),
    )
