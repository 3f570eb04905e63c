"""The layers of `state.db`: what is needed to open each again without any network, and who uses it."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.errors import FailedPrecondition, NotFound
from snapshotter.store.state_database import StateDatabase


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One recorded layer. Digests are `sha256:<hex>`. Offsets and sizes are bytes of the blob; times are Unix time in nanoseconds.

    `verified`: its TOC's digest was anchored. `prefetch_size`: bytes by label, None leaves it to landmark and
    configuration. `prefetched` and `complete` say what was fetched at some time; objects may have left since.
    """

    number: int
    layer_digest: str
    toc_digest: str
    domain: str
    index_revision: int
    blob_size: int
    media_type: str
    codec: str
    toc_offset: int
    toc_end: int
    payload_end: int
    verified: bool
    prefetch_size: int | None
    prefetched: bool
    complete: bool
    created_ns: int
    last_used_ns: int


@dataclass(frozen=True, slots=True)
class LayerSource:
    """An image in whose manifest a layer was found, and from which its blob can be asked."""

    reference: str
    manifest_digest: str


_BY_IDENTITY = "SELECT * FROM layers WHERE layer_digest = ? AND toc_digest = ? AND domain = ? AND index_revision = ?"
_FLAGS = ("verified", "prefetched", "complete")


class LayerTable(StateDatabase):
    """Layers, their sources, and the numbers of FUSE sessions."""

    def record_layer(
        self,
        *,
        layer_digest: str,
        toc_digest: str,
        domain: str,
        index_revision: int,
        blob_size: int,
        media_type: str,
        codec: str,
        toc_offset: int,
        toc_end: int,
        payload_end: int,
        verified: bool,
        prefetch_size: int | None,
    ) -> LayerRecord:
        """Record a layer under a new number, or return the record that these two digests, domain and revision have.

        The record is on disk when this returns, so that its number can be shown to the kernel. A record that was
        unverified becomes verified when it is asked for with `verified`; the other values of an old record stay.
        """
        identity = (layer_digest, toc_digest, domain, index_revision)
        now_ns = self._clock_ns()
        with self.write() as db:
            row = db.execute(_BY_IDENTITY, identity).fetchone()
            if row is None:
                if db.execute("SELECT 1 FROM domains WHERE name = ?", (domain,)).fetchone() is None:
                    db.execute("INSERT INTO domains (name) VALUES (?)", (domain,))
                # Not an upsert: that would use up a number even where the record is there.
                db.execute(
                    "INSERT INTO layers (layer_digest, toc_digest, domain, index_revision, blob_size, media_type,"
                    " codec, toc_offset, toc_end, payload_end, verified, prefetch_size, created_ns, last_used_ns)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*identity, blob_size, media_type, codec, toc_offset, toc_end, payload_end, verified,
                     prefetch_size, now_ns, now_ns),
                )  # fmt: skip
            elif verified and not row["verified"]:
                db.execute("UPDATE layers SET verified = 1 WHERE number = ?", (row["number"],))
            return _record(db.execute(_BY_IDENTITY, identity).fetchone())

    def reindex_layer(self, number: int, index_revision: int) -> LayerRecord:
        """Record that a layer's index is of another revision now, which numbers nodes as the one before did.

        Raises:
            NotFound: no such layer.
        """
        with self.write() as db:
            db.execute("UPDATE layers SET index_revision = ? WHERE number = ?", (index_revision, number))
        return self.layer(number)

    def renumber_layer(self, number: int, index_revision: int) -> LayerRecord:
        """Record a layer with an index of another revision; its sources and snapshots go over to the new number.

        A new number, since inode numbers depend on the index and the kernel may remember those of the old one.

        Raises:
            NotFound: no such layer.
        """
        with self.write() as db:
            old = db.execute("SELECT * FROM layers WHERE number = ?", (number,)).fetchone()
            if old is None:
                raise NotFound(f"layer {number} is not recorded on this node")
            identity = (old["layer_digest"], old["toc_digest"], old["domain"], index_revision)
            if db.execute(_BY_IDENTITY, identity).fetchone() is None:
                values = {name: old[name] for name in old.keys() if name != "number"}  # noqa: SIM118 (a sqlite3.Row)
                values["index_revision"] = index_revision
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                db.execute(f"INSERT INTO layers ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608 (columns)
            new = _record(db.execute(_BY_IDENTITY, identity).fetchone())
            db.execute(
                "INSERT OR IGNORE INTO layer_sources"
                " SELECT ?, reference, manifest_digest FROM layer_sources WHERE number = ?",
                (new.number, number),
            )
            db.execute("UPDATE snapshots SET layer_number = ? WHERE layer_number = ?", (new.number, number))
            db.execute("DELETE FROM layers WHERE number = ?", (number,))
        return new

    def layers(self) -> list[LayerRecord]:
        """Every recorded layer, lowest number first."""
        with self.read() as db:
            return [_record(row) for row in db.execute("SELECT * FROM layers ORDER BY number")]

    def layer(self, number: int) -> LayerRecord:
        """The record of one layer.

        Raises:
            NotFound: no such number.
        """
        with self.read() as db:
            row = db.execute("SELECT * FROM layers WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise NotFound(f"layer {number} is not recorded on this node")
        return _record(row)

    def add_source(self, number: int, reference: str, manifest_digest: str) -> None:
        """Note an image that contains the layer; nothing happens if it is noted already.

        Raises:
            NotFound: no such layer.
        """
        with self.write() as db:
            if db.execute("SELECT 1 FROM layers WHERE number = ?", (number,)).fetchone() is None:
                raise NotFound(f"layer {number} is not recorded on this node")
            db.execute("INSERT OR IGNORE INTO layer_sources VALUES (?, ?, ?)", (number, reference, manifest_digest))

    def sources(self, number: int) -> list[LayerSource]:
        """The images that contain the layer."""
        with self.read() as db:
            rows = db.execute(
                "SELECT reference, manifest_digest FROM layer_sources WHERE number = ? ORDER BY 1, 2", (number,)
            ).fetchall()
        return [LayerSource(row["reference"], row["manifest_digest"]) for row in rows]

    def tails(self, name: str) -> list[tuple[int, int]]:
        """(blob size, bytes from its TOC to its end) of the layers found in images of this host and repository."""
        with self.read() as db:
            rows = db.execute(
                "SELECT DISTINCT blob_size, blob_size - toc_offset AS tail FROM layers JOIN layer_sources USING (number)"
                " WHERE substr(reference, 1, ?) IN (?, ?)",
                (len(name) + 1, f"{name}:", f"{name}@"),
            ).fetchall()
        return [(row["blob_size"], row["tail"]) for row in rows]

    def set_progress(self, number: int, *, prefetched: bool | None = None, complete: bool | None = None) -> None:
        """Note what of a layer is on this node; None leaves a mark as it is, a layer that is gone is passed over."""
        with self.write() as db:
            db.execute(
                "UPDATE layers SET prefetched = coalesce(?, prefetched), complete = coalesce(?, complete)"
                " WHERE number = ?",
                (prefetched, complete, number),
            )

    def set_incomplete(self, numbers: Sequence[int]) -> None:
        """Files of these layers have left this node."""
        with self.write() as db:
            db.executemany("UPDATE layers SET complete = 0 WHERE number = ?", [(number,) for number in numbers])

    def touch_layers(self, numbers: Sequence[int], ns: int) -> None:
        """Set the last use of these layers to the Unix time `ns`; a clock that went back changes nothing."""
        with self.write() as db:
            db.executemany(
                "UPDATE layers SET last_used_ns = max(last_used_ns, ?) WHERE number = ?",
                [(ns, number) for number in numbers],
            )

    def forget_layer(self, number: int) -> None:
        """Drop a layer's record and sources; nothing happens if it is gone already.

        Raises:
            FailedPrecondition: a snapshot still names it.
        """
        with self.write() as db:
            row = db.execute("SELECT key FROM snapshots WHERE layer_number = ? LIMIT 1", (number,)).fetchone()
            if row is not None:
                raise FailedPrecondition(f"layer {number} is in use by snapshot {row['key']!r}: remove that first")
            db.execute("DELETE FROM layers WHERE number = ?", (number,))

    def layers_in_use(self) -> dict[int, bool]:
        """The numbers that snapshots name; True where the chain of an active snapshot or a view names it."""
        with self.read() as db:
            rows = db.execute(
                "WITH RECURSIVE live (id, parent_id, layer_number) AS ("
                " SELECT id, parent_id, layer_number FROM snapshots WHERE kind IN (1, 2)"
                " UNION SELECT s.id, s.parent_id, s.layer_number FROM snapshots s JOIN live ON s.id = live.parent_id)"
                " SELECT layer_number, max(id IN (SELECT id FROM live)) AS active FROM snapshots"
                " WHERE layer_number IS NOT NULL GROUP BY layer_number"
            ).fetchall()
        return {row["layer_number"]: bool(row["active"]) for row in rows}

    def unnamed_layers(self, created_before_ns: int) -> list[LayerRecord]:
        """Layers that no snapshot names: those that one named earlier, and those recorded before this Unix time.

        The others are still waited for: all layers of an image are recorded with its first Prepare.
        """
        with self.read() as db:
            rows = db.execute(
                "SELECT * FROM layers WHERE (named OR created_ns < ?) AND number NOT IN"
                " (SELECT layer_number FROM snapshots WHERE layer_number IS NOT NULL) ORDER BY number",
                (created_before_ns,),
            ).fetchall()
        return [_record(row) for row in rows]

    def last_session(self) -> int:
        """The newest session number; 0 if none was given."""
        with self.read() as db:
            (number,) = db.execute("SELECT COALESCE(MAX(number), 0) FROM sessions").fetchone()
        return int(number)

    def next_session(self) -> int:
        """A session number that was never given before, on disk when this returns."""
        with self.write() as db:
            number = db.execute("INSERT INTO sessions (created_ns) VALUES (?)", (self._clock_ns(),)).lastrowid
        if number is None:  # an INSERT always sets it; the type does not say so
            raise AssertionError("no row was inserted")
        return number


def _record(row: sqlite3.Row) -> LayerRecord:
    values = {name: row[name] for name in LayerRecord.__dataclass_fields__}
    for flag in _FLAGS:
        values[flag] = bool(values[flag])
    return LayerRecord(**values)
