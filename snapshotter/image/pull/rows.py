"""What is known of each layer while an image is pulled, for whoever watches."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class LayerState(StrEnum):
    """Where a layer is on its way into containerd; the last three are ends."""

    WAITING = "waiting"
    ASKING = "asking"
    """The snapshotter looks whether it can be lazy."""
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    APPLYING = "applying"
    LAZY = "lazy"
    """Mounted; its content comes when it is needed."""
    UNPACKED = "unpacked"
    """Fetched whole and unpacked by containerd."""
    PRESENT = "present"
    """On the node before."""


ENDS = frozenset({LayerState.LAZY, LayerState.UNPACKED, LayerState.PRESENT})


@dataclass(slots=True)
class LayerRow:
    """One layer; sizes are bytes, times monotonic seconds.

    `size` is that of the blob, `received` how much of it containerd has, `fetched` what crossed the wire for this pull.
    `reason` is a word for why it is not lazy, `detail` a sentence.
    """

    digest: str
    chain_id: str
    size: int
    state: LayerState = LayerState.WAITING
    reason: str = ""
    detail: str = ""
    received: int = 0
    fetched: int = 0
    began_s: float | None = None
    ended_s: float | None = None

    def seconds(self, now_s: float) -> float:
        """How long it took, or takes until now."""
        if self.began_s is None:
            return 0.0
        return (now_s if self.ended_s is None else self.ended_s) - self.began_s


class Watcher(Protocol):
    """Who is told of a pull. Called in the trio thread; must not block."""

    def begin(self, rows: Sequence[LayerRow]) -> None:
        """The layers are known; the rows change from now on."""

    def ended(self, number: int, count: int, row: LayerRow) -> None:
        """Layer `number` (from 1) of `count` is where it stays."""

    def note(self, sentence: str) -> None:
        """Something that an admin should know, and that stops nothing."""
