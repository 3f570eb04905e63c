"""What the layer room counts; the daemon shows it."""

from dataclasses import dataclass, field

from snapshotter.layer.priority import Priority


@dataclass(slots=True)
class Counters:
    """Totals since the daemon's start. Sizes are bytes."""

    fetched: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    requests: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    reads: int = 0
    reads_waited: int = 0
    read_wait_s: float = 0.0
    read_errors: int = 0
    last_demand: float = float("-inf")
    """trio's time of the last read that had to wait."""
    verification_failures: int = 0
    served_from_memory: int = 0
    evicted_bytes: int = 0
    hosts: dict[str, str] = field(default_factory=dict)
    """Registry hosts that were asked; the text is the last failure, empty when the last request worked."""
