"""`cache.db`: which objects a completed syncfs covered, and whether the last daemon ended in order.

It may be lost: then every object found is proven again before it is used. SQLite runs only at start, at the end and
once per sync, in whichever worker thread called; nothing on a read's way asks it.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path

from snapshotter.errors import StateRevision, StoreError
from snapshotter.store.sqlite import Migration, database_errors, open_database

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# A row covers one file, not a name: an object that was removed and fetched again has another inode or time, so a row
# that outlived its file (deletions are written with the next sync) vouches for nothing.
_MIGRATIONS: tuple[Migration, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    CREATE TABLE covered (
        domain TEXT NOT NULL, digest BLOB NOT NULL, inode INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        PRIMARY KEY (domain, digest)
    ) WITHOUT ROWID;
    """,
)

# (domain, digest) → (inode, mtime_ns)
Key = tuple[str, bytes]
FileStamp = tuple[int, int]


class Trust(Enum):
    """What may be believed of the objects found at start."""

    ALL = auto()  # same boot, or the last daemon synced and ended in order
    COVERED = auto()  # the machine stopped meanwhile: only what a syncfs covered
    NONE = auto()  # cache.db is new: nothing is known


def read_boot_id() -> str:
    """The kernel's id of this boot.

    Source: random(4), /proc/sys/kernel/random/boot_id.
    """
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise StoreError(f"{BOOT_ID}: {error.strerror or error}; is /proc mounted?") from error


class CacheDB:
    """The open database. Methods may be called from any thread."""

    def __init__(self, path: Path, boot_id: str | None = None) -> None:
        """Open or create `path`; a file that is no database or is damaged is thrown away.

        Raises:
            StateRevision: a newer version wrote it.
            StoreError: it can be neither opened nor replaced.
        """
        self._path = path
        self.boot_id = boot_id or read_boot_id()
        self._lock = threading.Lock()  # guards _connection
        self._connection = self._open()
        try:
            meta = self._meta()
        except StoreError as error:
            self._replace(error)
            meta = {}
        self.trust = _trust(meta, self.boot_id)
        self.used_estimate = _whole_number(meta.get("used"))
        self.ended = meta.get("clean") == 1
        # Every row's file is there, unless somebody else took it: no daemon was killed between a removal and its sync.
        self.exact = self.trust is Trust.NONE or (meta.get("clean") == 1 and meta.get("exact") == 1)

    def begin(self) -> None:
        """The objects are in the state that `trust` asks for: from now on this boot's are good, and the end is not in order yet."""
        self._write({"boot_id": self.boot_id, "clean": 0, "exact": 0}, (), {})

    def domains(self) -> list[str]:
        """Domains of which a syncfs covered something, sorted."""
        with self._lock, database_errors(self._path):
            return [
                domain for (domain,) in self._connection.execute("SELECT DISTINCT domain FROM covered ORDER BY domain")
            ]

    def covered(self, domain: str, shard: str) -> dict[bytes, FileStamp]:
        """What a syncfs covered of one shard: digest → (inode, mtime_ns)."""
        low = bytes.fromhex(shard)
        with self._lock, database_errors(self._path):
            rows = self._connection.execute(
                "SELECT digest, inode, mtime_ns FROM covered WHERE domain = ? AND digest >= ? AND digest < ?",
                (domain, low, low + b"\xff" * 32),
            )
            return {digest: (inode, mtime_ns) for digest, inode, mtime_ns in rows}

    def record(self, covered: dict[Key, FileStamp], removed: Iterable[Key], used: int) -> None:
        """After a syncfs: one transaction for all that it covered and all that went.

        Raises:
            StoreError: not written, not even into a new database.
        """
        self._write({"used": used}, removed, covered)

    def end(self, *, exact: bool) -> None:
        """Everything is synced and nothing will be written any more: the next start may trust all.

        `exact`: every row of an object that was removed went too, also of those that an earlier daemon removed.
        """
        self._write({"clean": 1, "exact": int(exact)}, (), {})

    def close(self) -> None:
        """Close the file; again is harmless."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return open_database(self._path, synchronous="FULL", migrations=_MIGRATIONS)
        except StateRevision:
            raise
        except StoreError as error:
            if not isinstance(error.__cause__, sqlite3.DatabaseError):
                raise
            return self._fresh(error)

    def _fresh(self, reason: StoreError) -> sqlite3.Connection:
        log.warning("cache database is unusable and starts anew; its objects are checked again: %s", reason)
        for suffix in ("", "-wal", "-shm"):
            with database_errors(self._path):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return open_database(self._path, synchronous="FULL", migrations=_MIGRATIONS)

    def _replace(self, reason: StoreError) -> None:
        self._connection.close()
        self._connection = self._fresh(reason)

    def _meta(self) -> dict[str, object]:
        with database_errors(self._path):
            return dict(self._connection.execute("SELECT key, value FROM meta"))

    def _write(self, meta: dict[str, object], removed: Iterable[Key], covered: dict[Key, FileStamp]) -> None:
        removed = list(removed)
        with self._lock:
            try:
                self._transaction(meta, removed, covered)
            except StoreError as error:
                if not _is_damage(error):
                    raise
                # What is on disk was good until now, so this boot's mark goes into the new file; rows do not, and
                # after a power loss the objects without a row are checked.
                self._replace(error)
                self._transaction({"boot_id": self.boot_id, "clean": 0, "exact": 0} | meta, removed, covered)

    def _transaction(self, meta: dict[str, object], removed: Iterable[Key], covered: dict[Key, FileStamp]) -> None:
        with database_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("DELETE FROM covered WHERE domain = ? AND digest = ?", removed)
                self._connection.executemany(
                    "INSERT OR REPLACE INTO covered VALUES (?, ?, ?, ?)",
                    ((*key, *stamp) for key, stamp in covered.items()),
                )
                self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _trust(meta: dict[str, object], boot_id: str) -> Trust:
    if "boot_id" not in meta:
        return Trust.NONE
    if meta["boot_id"] == boot_id or meta.get("clean") == 1:
        return Trust.ALL
    return Trust.COVERED


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _is_damage(error: StoreError) -> bool:
    cause = error.__cause__
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
