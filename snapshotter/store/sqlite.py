"""Opening a SQLite database: WAL, a revision in `user_version`, migrations, and errors in our own words."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snapshotter.errors import StateRevision, StoreError, StoreFull

Migration = str | Callable[[sqlite3.Connection], None]

BUSY_TIMEOUT_S = 10.0


def open_database(path: Path, *, synchronous: str, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open or create the database at `path` and bring it to revision `len(migrations)`.

    `migrations[i]` leads from revision i to i + 1: SQL without transaction statements, or a function that is called
    inside the transaction. A migration and its new revision number are committed together, so that a crash leaves
    the old revision or the new one. `synchronous` is a word of SQLite's pragma: "FULL", "NORMAL" or "OFF".

    The connection commits each statement by itself unless a BEGIN was executed; it may be used from any thread, one
    at a time (the caller holds the lock).

    Raises:
        StateRevision: a newer version wrote the file.
        StoreFull: no room for the file.
        StoreError: not a database, or not readable.
    Source: sqlite.org/pragma.html, user_version, journal_mode and synchronous.
    """
    if synchronous not in ("OFF", "NORMAL", "FULL"):
        raise ValueError(f"synchronous={synchronous!r}")
    with database_errors(path):
        _create_private(path)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("PRAGMA foreign_keys=ON")
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the kernel raise about the database at `path` into `StoreError` or `StoreFull`."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF == sqlite3.SQLITE_FULL:
            raise StoreFull(f"no room to write {path}: free space on its file system") from error
        raise StoreError(f"database {path}: {error}") from error
    except OSError as error:
        raise StoreError(f"database {path}: {error.strerror or error}") from error


def _create_private(path: Path) -> None:
    """Make the file with mode 0600 first: SQLite gives the -wal and -shm files the mode of the database."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > len(migrations):
        raise StateRevision(
            f"{path} has revision {found}, this version knows up to {len(migrations)}: "
            "run the newer version again, or give this one another root directory"
        )
    for revision, migration in enumerate(migrations[found:], start=found + 1):
        try:
            if isinstance(migration, str):
                # One script with its own BEGIN: executescript would commit a transaction begun before it.
                connection.executescript(f"BEGIN IMMEDIATE;\n{migration}\n;PRAGMA user_version={revision};\nCOMMIT;")
            else:
                connection.execute("BEGIN IMMEDIATE")
                migration(connection)
                connection.execute(f"PRAGMA user_version={revision}")
                connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
