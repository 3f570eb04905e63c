import sqlite3
import stat
from pathlib import Path

import pytest

from snapshotter.errors import StateRevision, StoreError
from snapshotter.store.sqlite import Migration, open_database

FIRST = "CREATE TABLE a (x); CREATE TABLE b (y);"


def second(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO a VALUES (7)")


def revision(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def test_new_database_gets_all_migrations_wal_and_private_files(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    connection = open_database(path, synchronous="FULL", migrations=(FIRST, second))
    try:
        assert connection.execute("SELECT x FROM a").fetchall() == [(7,)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
        connection.execute("INSERT INTO b VALUES (1)")
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    finally:
        connection.close()
    assert revision(path) == 2


def test_only_missing_migrations_run(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    open_database(path, synchronous="OFF", migrations=(FIRST,)).close()
    open_database(path, synchronous="OFF", migrations=(FIRST, second)).close()
    connection = open_database(path, synchronous="OFF", migrations=(FIRST, second))
    assert connection.execute("SELECT x FROM a").fetchall() == [(7,)]
    connection.close()


def test_newer_revision_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    open_database(path, synchronous="OFF", migrations=(FIRST, second)).close()
    with pytest.raises(StateRevision, match="revision 2, this version knows up to 1"):
        open_database(path, synchronous="OFF", migrations=(FIRST,))
    assert revision(path) == 2


def fails(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO a VALUES (8)")
    raise sqlite3.IntegrityError("no")


@pytest.mark.parametrize("bad", [fails, "INSERT INTO a VALUES (8); CREATE TABLE a (x);"])
def test_failed_migration_leaves_the_revision_before_it(tmp_path: Path, bad: Migration) -> None:
    path = tmp_path / "x.db"
    with pytest.raises(StoreError):
        open_database(path, synchronous="OFF", migrations=(FIRST, bad))
    assert revision(path) == 1
    connection = open_database(path, synchronous="OFF", migrations=(FIRST,))
    assert connection.execute("SELECT x FROM a").fetchall() == []
    connection.close()


def test_what_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match=r"x\.db"):
        open_database(path, synchronous="FULL", migrations=())
    with pytest.raises(StoreError):
        open_database(tmp_path / "missing" / "x.db", synchronous="FULL", migrations=())


def test_symlink_in_place_of_the_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        open_database(tmp_path / "x.db", synchronous="FULL", migrations=())
