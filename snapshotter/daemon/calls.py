"""How long gRPC calls took: what `service.timing` tells, kept for the metrics."""

import threading

from snapshotter.layer.counters import Histogram

CALL_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a Stat to a Prepare that waits for a registry (lazy.resolve_timeout_s)."""


class CallTimes:
    """One histogram for each method and code, both of fixed sets; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _times and the histograms in it: each call has a thread of its own
        self._times: dict[tuple[str, str], Histogram] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Count one call."""
        with self._lock:
            found = self._times.get((method, code))
            if found is None:
                found = self._times[method, code] = Histogram.over(CALL_BOUNDS_S)
            found.observe(seconds)

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """Copies, by method and code."""
        with self._lock:
            return {key: Histogram(one.bounds, list(one.counts), one.sum) for key, one in self._times.items()}
