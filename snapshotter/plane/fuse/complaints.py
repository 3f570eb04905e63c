"""What the FUSE door says of failed requests: enough to act on, and not more when thousands fail alike."""

import logging
import time
from collections.abc import Callable

from snapshotter.errors import SnapshotterError

log = logging.getLogger(__name__)


class Complaints:
    """Says what went wrong without letting a dead registry and a thousand readers fill the log.

    One line per operation and kind of error in `interval_s`; the next line tells how many were left out.
    """

    def __init__(self, interval_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._seen: dict[tuple[str, type], tuple[float, int]] = {}

    def about(self, operation: str, error: Exception) -> None:
        """Log `error`, with its traceback if it is none of ours and thus a fault of the program."""
        key, now = (operation, type(error)), self._clock()
        last, dropped = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._interval_s:
            self._seen[key] = (last, dropped + 1)
            return
        self._seen[key] = (now, 0)
        more = f" ({dropped} more like it since)" if dropped else ""
        if isinstance(error, SnapshotterError):
            log.warning("%s failed: %s%s", operation, error, more)
        else:
            log.error("%s failed, this is a fault of the snapshotter%s", operation, more, exc_info=error)
