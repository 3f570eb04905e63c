"""What became of each layer of each pull: kept for people who ask why an image was not lazy, bounded in number."""

from dataclasses import dataclass
from enum import StrEnum

from snapshotter.errors import Reason
from snapshotter.store.state_database import StateDatabase

# About 200 images of 20 layers; the oldest outcomes leave first.
MAX_PULLS = 4096


class Outcome(StrEnum):
    """How a layer of a pull ended."""

    LAZY = "lazy"
    PRESENT = "present"
    ORDINARY = "ordinary"


@dataclass(frozen=True, slots=True)
class PullRecord:
    """The last outcome of one layer of one image; `at_ns` is Unix time in nanoseconds.

    `layer_digest` is the target's name where the labels named no layer, and `reference` is empty then.
    """

    reference: str
    layer_digest: str
    outcome: Outcome
    reason: Reason | None
    message: str | None
    at_ns: int


class PullTable(StateDatabase):
    """The outcomes of pulls."""

    def record_pull(
        self,
        reference: str,
        layer_digest: str,
        outcome: Outcome,
        reason: Reason | None = None,
        message: str | None = None,
    ) -> None:
        """Keep the outcome of one layer in place of the one before."""
        with self.write() as db:
            # A new row rather than an update, so that the identifier stays the order of arrival.
            db.execute("DELETE FROM pulls WHERE reference = ? AND layer_digest = ?", (reference, layer_digest))
            db.execute(
                "INSERT INTO pulls (reference, layer_digest, outcome, reason, message, at_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (reference, layer_digest, outcome, reason, message, self._clock_ns()),
            )
            db.execute(
                "DELETE FROM pulls WHERE id <= (SELECT id FROM pulls ORDER BY id DESC LIMIT 1 OFFSET ?)", (MAX_PULLS,)
            )

    def pulls(self) -> list[PullRecord]:
        """The kept outcomes, oldest first."""
        with self.read() as db:
            rows = db.execute(
                "SELECT reference, layer_digest, outcome, reason, message, at_ns FROM pulls ORDER BY id"
            ).fetchall()
        return [
            PullRecord(
                row["reference"],
                row["layer_digest"],
                Outcome(row["outcome"]),
                None if row["reason"] is None else Reason(row["reason"]),
                row["message"],
                row["at_ns"],
            )
            for row in rows
        ]
