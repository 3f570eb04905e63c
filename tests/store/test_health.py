"""A disk that refuses writes: said, not asked at every chunk, and used again as soon as it takes them."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store import health, partial_files, writer
from snapshotter.store.disk import write_all
from snapshotter.store.health import ROOM
from snapshotter.store.identity import FileIdentity
from snapshotter.store.state import State
from tests.store.content import DOMAIN, bytes_of, content, du, identity_of, opened, put

DATA = bytes_of(300_000)
SMALL, LARGE = identity_of(DATA), identity_of(DATA, 65_536)


class SickDisk:
    """Refuses every write of content with one error for as long as it has one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.code = code
        self.writes = 0
        for module in (writer, partial_files, health):
            monkeypatch.setattr(module, "write_all", self.write)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.writes += 1
        if self.code:
            raise OSError(self.code, os.strerror(self.code))
        write_all(fd, data, offset)


@pytest.mark.parametrize("identity", [SMALL, LARGE], ids=["object", "chunk"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_refusal_is_remembered_until_the_disk_takes_as_much_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, identity: FileIdentity
) -> None:
    with opened(tmp_path) as store:
        assert not store.refuses(1)
        sick = SickDisk(monkeypatch, code)
        kind = StoreFull if code in (errno.ENOSPC, errno.EDQUOT) else StoreError
        with pytest.raises(kind):
            put(store, DATA, identity, 0)
        assert store.refuses(1)
        assert os.strerror(code) in str(store.health.refusal)
        asked = sick.writes
        with pytest.raises(kind):
            put(store, DATA, identity, 0)
        assert sick.writes == asked
        store.tend_disk()
        assert (store.refuses(1), sick.writes) == (True, asked + 1)
        sick.code = 0
        store.tend_disk()
        assert not store.refuses(1)
        for ordinal in range(len(identity.chunks)):
            put(store, DATA, identity, ordinal)
        assert content(store, identity) == DATA
        assert list((tmp_path / "partial" / DOMAIN).iterdir()) == []


def test_full_disk_wants_a_part_of_the_cache_to_leave_where_no_limit_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, SMALL, 0)
        assert store.over_limit() == 0
        sick = SickDisk(monkeypatch, errno.EDQUOT)
        other = identity_of(bytes_of(100_000, 1))
        with pytest.raises(StoreFull):
            put(store, bytes_of(100_000, 1), other, 0)
        assert store.over_limit() == store.usage().used < ROOM
        sick.code = 0
        assert store.evict([(DOMAIN, SMALL.digest, SMALL.size)], 1).objects == 1
        assert (store.refuses(1), store.over_limit()) == (False, 0)


@pytest.mark.parametrize("code", [errno.EMLINK, errno.ENAMETOOLONG])
def test_what_concerns_one_file_only_is_no_sickness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with opened(tmp_path) as store:
        SickDisk(monkeypatch, code)
        with pytest.raises(StoreError):
            put(store, DATA, SMALL, 0)
        assert store.health.refusal is None


def test_small_write_does_not_tell_that_a_large_one_goes_through(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        refusal = StoreFull("cannot write")
        refusal.__cause__ = OSError(errno.ENOSPC, "full")
        store.health.refused(refusal, 1 << 20)
        store.health.worked(100_000)
        assert store.refuses(1)
        store.health.worked(1 << 20)
        assert not store.refuses(1)


def test_sync_that_the_disk_refuses_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        error = StoreError("cannot sync the cache's file system: Input/output error")
        error.__cause__ = OSError(errno.EIO, "Input/output error")
        raise error

    with opened(tmp_path) as store:
        put(store, DATA, SMALL, 0)
        with monkeypatch.context() as patch:
            patch.setattr("snapshotter.store.syncing.syncfs", fail)
            with pytest.raises(StoreError):
                store.sync()
        assert store.refuses(1)
        store.tend_disk()
        assert not store.refuses(1)
        assert store.dirty


def test_state_that_could_not_be_written_is_tried_again_until_it_can(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    # As a full disk says it.
    (pages,) = state._writer.execute("PRAGMA page_count").fetchone()
    state._writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreFull), state.write() as db:
        db.execute("CREATE TABLE more (data)")
        db.execute("INSERT INTO more VALUES (?)", (bytes(100_000),))
    assert isinstance(state.health.refusal, StoreFull)
    assert isinstance(state.health.refusal.__cause__, sqlite3.Error)
    state._writer.execute("PRAGMA max_page_count=100000")
    state.try_again()
    assert state.health.refusal is None
    state.close()


@pytest.mark.parametrize("removable", [True, False])
def test_object_that_the_disk_does_not_give_back_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removable: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with opened(tmp_path) as store:
        put(store, DATA, SMALL, 0)
        if not removable:
            monkeypatch.setattr(type(store._objects), "unlink", refuse)
        store.drop_unreadable(DOMAIN, SMALL.digest)
        assert not store.has(DOMAIN, SMALL.digest, SMALL.size)
        assert store.acquire(DOMAIN, SMALL.digest, SMALL.size) is None
        assert store.counters.unreadable == 1
        monkeypatch.undo()
        store.remove(DOMAIN, SMALL.digest)
        put(store, DATA, SMALL, 0)
        assert content(store, SMALL) == DATA


def test_disk_that_does_not_say_what_it_has_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path) as store:
        put(store, DATA, SMALL, 0)
        monkeypatch.setattr(type(store._objects), "named", fail)
        assert not store.has(DOMAIN, SMALL.digest, SMALL.size)
        monkeypatch.undo()
        assert store.has(DOMAIN, SMALL.digest, SMALL.size)


@pytest.mark.parametrize("call", ["rename", "fchmod", "ftruncate", "mkdir", "unlink"])
@pytest.mark.parametrize("identity", [SMALL, LARGE], ids=["object", "chunks"])
def test_whatever_the_disk_refuses_on_the_way_of_a_file_it_comes_in_whole_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, identity: FileIdentity
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            for ordinal in range(len(identity.chunks)):
                try:
                    put(store, DATA, identity, ordinal)
                except StoreError:
                    store.tend_disk()
            found = content(store, identity)
        assert found in (None, DATA)
        store.tend_disk()
        for ordinal in range(len(identity.chunks)):
            put(store, DATA, identity, ordinal)
        assert content(store, identity) == DATA
        # What could not be unlinked has two names until the next start, and is counted by each.
        assert call == "unlink" or store.usage().used == du(tmp_path)
    with opened(tmp_path) as store:
        assert content(store, identity) == DATA
        assert store.usage().used == du(tmp_path)
        assert not list((tmp_path / "partial").rglob("*.tmp"))
