"""What a soak is to be: how long, with which dice, on which nodes."""

from collections.abc import Mapping
from dataclasses import dataclass

LONGEST_LIFE_S = 30.0
LONGEST_DAEMON_LIFE_S = 14.0
LONGEST_OUTAGE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A node: its plane, whether its daemon is killed, and whether everything is fetched without being asked for."""

    plane: str
    killed: bool
    background: bool


KINDS: Mapping[str, Kind] = {
    "erofs-calm": Kind("erofs", killed=False, background=True),
    "erofs-killed": Kind("erofs", killed=True, background=False),
    "fuse-calm": Kind("fuse", killed=False, background=False),
    "fuse-killed": Kind("fuse", killed=True, background=True),
}
"""Only a daemon that nobody kills lives long enough for a leak to be seen."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, with which dice, on which nodes, and how much at a time."""

    seconds: float
    seed: int
    kinds: tuple[str, ...]
    slots: int = 2
    pace_ms: int = 15
    sample_every_s: float = 2.0

    @property
    def life_s(self) -> float:
        """How long a container lives at most."""
        return min(LONGEST_LIFE_S, self.seconds / 3)

    @property
    def daemon_life_s(self) -> float:
        """How long a daemon lives at most that is killed."""
        return min(LONGEST_DAEMON_LIFE_S, self.seconds / 3)

    @property
    def outage_s(self) -> float:
        """How long the registry is away at most: a reader waits longer than that."""
        return min(LONGEST_OUTAGE_S, self.seconds / 10)
