"""Connections to `state.db`: one that writes, under a lock, and as many readers as there are threads reading."""

import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshotter.errors import StoreError
from snapshotter.store.health import DiskHealth
from snapshotter.store.sqlite import database_errors, open_database
from snapshotter.store.state_schema import MIGRATIONS


class StateDatabase:
    """Transactions on `state.db` from any thread.

    In WAL mode a reader sees the last committed state and never waits for the writer's fsync, so that a Stat is not
    held up by a Commit; hence the pool of readers beside the one writer.
    """

    def __init__(self, path: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """Open or create the database at `path` and migrate it; `clock_ns` gives the Unix time that is recorded.

        Raises:
            StateRevision: a newer version wrote it.
            StoreError: it cannot be read or written.
        """
        self._path = path
        self._clock_ns = clock_ns
        self._write_lock = threading.Lock()  # guards _writer: one transaction at a time
        self._pool_lock = threading.Lock()  # guards _readers and _closed
        self._writer = self._open()
        self._readers: list[sqlite3.Connection] = []
        self.health = DiskHealth()
        self._closed = False

    def close(self) -> None:
        """Close every connection that no thread holds; one in use closes when its thread is done."""
        with self._pool_lock:
            self._closed = True
            idle, self._readers = self._readers, []
        for connection in idle:
            connection.close()
        with self._write_lock:
            self._writer.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on disk when the block ends, and undone if the block raises.

        Raises:
            StoreFull: no room on the file system.
            StoreError: the database failed.
        """
        try:
            with self._write_lock, database_errors(self._path):
                # BEGIN IMMEDIATE takes the write lock at once: a transaction that reads first cannot be refused later.
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    # A full disk may have rolled back already.
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
        except StoreError as error:
            self.health.refused(error)
            raise
        self.health.worked(sys.maxsize)

    def try_again(self) -> None:
        """If the last write failed because of the disk, see whether it takes one now."""
        if self.health.refusal is not None:
            with suppress(StoreError), self.write() as db:
                # The same revision: a page is written all the same.
                (revision,) = db.execute("PRAGMA user_version").fetchone()
                db.execute(f"PRAGMA user_version={revision}")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: one consistent state, whatever is written meanwhile.

        Raises:
            StoreError: the database failed or is closed.
        """
        with database_errors(self._path):
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                self._give_back(connection)

    def _open(self) -> sqlite3.Connection:
        connection = open_database(self._path, synchronous="FULL", migrations=MIGRATIONS)
        connection.row_factory = sqlite3.Row
        return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise StoreError(f"{self._path} is closed: the daemon is stopping")
            if self._readers:
                return self._readers.pop()
        connection = self._open()
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._pool_lock:
            if not self._closed:
                self._readers.append(connection)
                return
        connection.close()
