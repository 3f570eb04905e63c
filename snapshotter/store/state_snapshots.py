"""Snapshots as rows of `state.db`; the rules are in `service.snapshots`.

Every function works inside the caller's transaction: `with state.read() as db` or `with state.write() as db`.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from snapshotter.errors import Reason


class Kind(IntEnum):
    """Of a snapshot; the numbers are those on the wire (containerd-contract 1.1)."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """One snapshot. Times are Unix time in nanoseconds; `parent` is "" without one.

    `size` (bytes) and `inodes` are None until measured. `layer_number` is None for an ordinary directory.
    """

    id: int
    key: str
    parent: str
    parent_id: int | None
    kind: Kind
    created_ns: int
    updated_ns: int
    size: int | None
    inodes: int | None
    layer_number: int | None
    not_lazy: Reason | None
    not_lazy_message: str | None
    reference: str | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What a new row is made of; the other columns begin empty."""

    key: str
    parent_id: int | None
    kind: Kind
    created_ns: int
    labels: Mapping[str, str]
    size: int | None = None
    inodes: int | None = None
    layer_number: int | None = None
    not_lazy: Reason | None = None
    not_lazy_message: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One snapshot of a chain, as far as mounting needs it."""

    id: int
    layer_number: int | None


_SELECT = "SELECT s.*, p.key AS parent FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent_id"


def find(db: sqlite3.Connection, key: str) -> SnapshotRecord | None:
    """The snapshot with this key or name."""
    row = db.execute(f"{_SELECT} WHERE s.key = ?", (key,)).fetchone()
    if row is None:
        return None
    return _record(row, _labels(db, row["id"]))


def find_committed(db: sqlite3.Connection, label: str, value: str, parent_id: int | None) -> list[SnapshotRecord]:
    """Committed snapshots that bear this label and lie directly on this parent, oldest first."""
    rows = db.execute(
        f"{_SELECT} JOIN labels l ON l.snapshot_id = s.id WHERE l.key = ? AND l.value = ? AND s.kind = ?"
        " AND s.parent_id IS ? ORDER BY s.id",
        (label, value, Kind.COMMITTED, parent_id),
    ).fetchall()
    return [_record(row, _labels(db, row["id"])) for row in rows]


def everything(db: sqlite3.Connection) -> list[SnapshotRecord]:
    """Every snapshot, oldest first."""
    labels: dict[int, dict[str, str]] = {}
    for snapshot_id, key, value in db.execute("SELECT snapshot_id, key, value FROM labels"):
        labels.setdefault(snapshot_id, {})[key] = value
    return [_record(row, labels.get(row["id"], {})) for row in db.execute(f"{_SELECT} ORDER BY s.id")]


def identifiers(db: sqlite3.Connection) -> set[int]:
    """The ids of all snapshots."""
    return {row["id"] for row in db.execute("SELECT id FROM snapshots")}


def census(db: sqlite3.Connection) -> dict[tuple[Kind, bool], int]:
    """How many snapshots there are, by kind and whether they fell back to an ordinary layer."""
    rows = db.execute(
        "SELECT kind, not_lazy IS NOT NULL AS fell, count(*) AS number FROM snapshots GROUP BY kind, fell"
    )
    return {(Kind(row["kind"]), bool(row["fell"])): row["number"] for row in rows}


def is_there(db: sqlite3.Connection, snapshot_id: int) -> bool:
    """Whether a snapshot has this id."""
    return db.execute("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone() is not None


def next_identifier(db: sqlite3.Connection) -> int:
    """An id above every one given so far; ids under it that are in no row belong to removed snapshots."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
    return 1 if row is None else int(row["seq"]) + 1


def chain(db: sqlite3.Connection, snapshot_id: int | None) -> list[ChainLink]:
    """The snapshot and its ancestors, topmost first; nothing for None."""
    rows = db.execute(
        "WITH RECURSIVE up (id, parent_id, layer_number, depth) AS ("
        " SELECT id, parent_id, layer_number, 0 FROM snapshots WHERE id = ?"
        " UNION ALL SELECT s.id, s.parent_id, s.layer_number, depth + 1"
        " FROM snapshots s JOIN up ON s.id = up.parent_id)"
        " SELECT id, layer_number FROM up ORDER BY depth",
        (snapshot_id,),
    ).fetchall()
    return [ChainLink(row["id"], row["layer_number"]) for row in rows]


def child_of(db: sqlite3.Connection, snapshot_id: int) -> str | None:
    """The key of some child; None without any."""
    row = db.execute("SELECT key FROM snapshots WHERE parent_id = ? LIMIT 1", (snapshot_id,)).fetchone()
    return None if row is None else str(row["key"])


def insert(db: sqlite3.Connection, new: NewSnapshot) -> int:
    """Add a row and return its id, which was never given before (unless a transaction with it was undone)."""
    cursor = db.execute(
        "INSERT INTO snapshots (key, parent_id, kind, created_ns, updated_ns, size, inodes, layer_number,"
        " not_lazy, not_lazy_message, reference) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (new.key, new.parent_id, new.kind, new.created_ns, new.created_ns, new.size, new.inodes, new.layer_number,
         new.not_lazy, new.not_lazy_message, new.reference),
    )  # fmt: skip
    snapshot_id = cursor.lastrowid
    if snapshot_id is None:  # an INSERT always sets it; the type does not say so
        raise AssertionError("no row was inserted")
    if new.layer_number is not None:
        db.execute("UPDATE layers SET named = 1 WHERE number = ?", (new.layer_number,))
    replace_labels(db, snapshot_id, new.labels)
    return snapshot_id


def commit(db: sqlite3.Connection, snapshot_id: int, name: str, parent_id: int | None, now_ns: int) -> None:
    """Turn an active row into a committed one that begins its life at `now_ns`; its usage is measured later."""
    db.execute(
        "UPDATE snapshots SET key = ?, parent_id = ?, kind = ?, created_ns = ?, updated_ns = ?, size = NULL,"
        " inodes = NULL WHERE id = ?",
        (name, parent_id, Kind.COMMITTED, now_ns, now_ns, snapshot_id),
    )


def set_usage(db: sqlite3.Connection, snapshot_id: int, size: int, inodes: int) -> None:
    """Keep what a committed snapshot takes: bytes and inodes."""
    db.execute("UPDATE snapshots SET size = ?, inodes = ? WHERE id = ?", (size, inodes, snapshot_id))


def set_updated(db: sqlite3.Connection, snapshot_id: int, now_ns: int) -> None:
    """Note when a snapshot was last changed."""
    db.execute("UPDATE snapshots SET updated_ns = ? WHERE id = ?", (now_ns, snapshot_id))


def replace_labels(db: sqlite3.Connection, snapshot_id: int, labels: Mapping[str, str]) -> None:
    """Give a snapshot exactly these labels; one with an empty value is none (containerd-contract 1.2)."""
    db.execute("DELETE FROM labels WHERE snapshot_id = ?", (snapshot_id,))
    db.executemany(
        "INSERT INTO labels (snapshot_id, key, value) VALUES (?, ?, ?)",
        [(snapshot_id, key, value) for key, value in labels.items() if value],
    )


def delete(db: sqlite3.Connection, snapshot_id: int) -> None:
    """Drop a row and its labels; it has no children."""
    db.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))


def _labels(db: sqlite3.Connection, snapshot_id: int) -> dict[str, str]:
    return dict(db.execute("SELECT key, value FROM labels WHERE snapshot_id = ?", (snapshot_id,)).fetchall())


def _record(row: sqlite3.Row, labels: Mapping[str, str]) -> SnapshotRecord:
    return SnapshotRecord(
        id=row["id"],
        key=row["key"],
        parent=row["parent"] or "",
        parent_id=row["parent_id"],
        kind=Kind(row["kind"]),
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
        size=row["size"],
        inodes=row["inodes"],
        layer_number=row["layer_number"],
        not_lazy=_reason(row["not_lazy"]),
        not_lazy_message=row["not_lazy_message"],
        reference=row["reference"],
        labels=labels,
    )


def _reason(word: str | None) -> Reason | None:
    """A kept reason; a word of another version, which must not make every List fail, is an internal error's."""
    if word is None:
        return None
    return Reason(word) if word in set(Reason) else Reason.INTERNAL
