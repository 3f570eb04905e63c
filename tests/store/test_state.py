"""`state.db`: layers, sources and sessions."""

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import FailedPrecondition, NotFound, StateRevision, StoreError
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state import LayerRecord, LayerSource, State
from snapshotter.store.state_schema import MIGRATIONS
from snapshotter.store.state_snapshots import Kind, NewSnapshot


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """An empty state whose clock counts."""
    ticks = itertools.count(1000)
    opened = State(tmp_path / "state.db", clock_ns=lambda: next(ticks))
    yield opened
    opened.close()


def record(state: State, layer: str = "sha256:l", *, domain: str = "node", verified: bool = True) -> LayerRecord:
    """Record a layer."""
    return state.record_layer(
        layer_digest=layer, toc_digest="sha256:t", domain=domain, index_revision=3, blob_size=900, media_type="m",
        codec="gzip", toc_offset=700, toc_end=849, payload_end=700, verified=verified, prefetch_size=None,
    )  # fmt: skip


def snapshot(state: State, key: str, parent: int | None, kind: Kind, layer: int | None = None) -> int:
    """Insert a snapshot."""
    with state.write() as db:
        return rows.insert(db, NewSnapshot(key, parent, kind, 1, {}, layer_number=layer))


def test_a_layer_is_recorded_once_and_comes_back_after_a_restart(tmp_path: Path, state: State) -> None:
    first = record(state)
    assert first == LayerRecord(
        number=1, layer_digest="sha256:l", toc_digest="sha256:t", domain="node", index_revision=3, blob_size=900,
        media_type="m", codec="gzip", toc_offset=700, toc_end=849, payload_end=700, verified=True, prefetch_size=None,
        prefetched=False, complete=False, created_ns=1000, last_used_ns=1000,
    )  # fmt: skip
    assert record(state) == first
    other = record(state, domain="other")
    state.close()
    again = State(tmp_path / "state.db")
    assert again.layers() == [first, other]
    assert again.layer(1) == first
    again.close()


def test_an_unverified_layer_becomes_verified_but_not_back(state: State) -> None:
    assert not record(state, verified=False).verified
    assert record(state, verified=True).verified
    assert record(state, verified=False).verified


def test_numbers_of_layers_and_sessions_are_never_given_twice(tmp_path: Path, state: State) -> None:
    assert [record(state, f"sha256:{n}").number for n in range(3)] == [1, 2, 3]
    state.forget_layer(3)
    state.forget_layer(3)
    assert [state.next_session(), state.next_session()] == [1, 2]
    state.close()
    again = State(tmp_path / "state.db")
    assert record(again, "sha256:9").number == 4
    assert again.next_session() == 3
    again.close()


def test_a_missing_layer_is_not_found(state: State) -> None:
    with pytest.raises(NotFound, match="layer 7"):
        state.layer(7)
    with pytest.raises(NotFound, match="layer 7"):
        state.add_source(7, "r", "sha256:m")


def test_sources_are_kept_once_each_and_go_with_the_layer(state: State) -> None:
    record(state)
    for reference in ("b/x:1", "a/x:1", "b/x:1"):
        state.add_source(1, reference, "sha256:m")
    assert state.sources(1) == [LayerSource("a/x:1", "sha256:m"), LayerSource("b/x:1", "sha256:m")]
    state.forget_layer(1)
    assert state.sources(1) == []


def test_progress_changes_what_is_named_only(state: State) -> None:
    record(state)
    state.set_progress(1, prefetched=True)
    state.set_progress(1, complete=True)
    assert (state.layer(1).prefetched, state.layer(1).complete) == (True, True)
    state.set_progress(1, complete=False)
    assert (state.layer(1).prefetched, state.layer(1).complete) == (True, False)
    state.set_progress(99, complete=True)


def test_last_use_never_goes_back(state: State) -> None:
    record(state)
    record(state, "sha256:k")
    state.touch_layers([1, 99], 5000)
    state.touch_layers([1, 2], 4000)
    assert [layer.last_used_ns for layer in state.layers()] == [5000, 4000]


def test_a_layer_in_use_is_not_forgotten(state: State) -> None:
    record(state)
    snapshot(state, "lazy one", None, Kind.COMMITTED, 1)
    with pytest.raises(FailedPrecondition, match="lazy one"):
        state.forget_layer(1)


def test_layers_in_use_tell_which_stand_under_something_active(state: State) -> None:
    for n in range(4):
        record(state, f"sha256:{n}")
    base = snapshot(state, "base", None, Kind.COMMITTED, 1)
    middle = snapshot(state, "middle", base, Kind.COMMITTED)
    top = snapshot(state, "top", middle, Kind.COMMITTED, 2)
    snapshot(state, "idle", base, Kind.COMMITTED, 3)
    assert state.layers_in_use() == {1: False, 2: False, 3: False}
    snapshot(state, "container", middle, Kind.ACTIVE)
    assert state.layers_in_use() == {1: True, 2: False, 3: False}
    snapshot(state, "view", top, Kind.VIEW)
    assert state.layers_in_use() == {1: True, 2: True, 3: False}


def test_unnamed_layers_are_those_once_named_and_those_grown_old(state: State) -> None:
    for n in range(3):
        record(state, f"sha256:{n}")
    named = snapshot(state, "a", None, Kind.COMMITTED, 1)
    was_named = snapshot(state, "b", None, Kind.COMMITTED, 2)
    assert state.unnamed_layers(0) == []
    with state.write() as db:
        rows.delete(db, was_named)
    assert [layer.number for layer in state.unnamed_layers(0)] == [2]
    assert [layer.number for layer in state.unnamed_layers(10**18)] == [2, 3]
    assert named


def test_a_snapshot_cannot_name_an_unknown_layer(state: State) -> None:
    with pytest.raises(StoreError):
        snapshot(state, "a", None, Kind.COMMITTED, 77)
    with state.read() as db:
        assert rows.everything(db) == []


def test_a_newer_revision_is_refused(tmp_path: Path) -> None:
    State(tmp_path / "state.db").close()
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StateRevision, match="newer version"):
        State(tmp_path / "state.db")


def test_a_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all, but long enough to be read as a header" * 40)
    with pytest.raises(StoreError, match=r"state\.db"):
        State(tmp_path / "state.db")


def test_commits_reach_the_disk_before_they_return(state: State) -> None:
    with state.write() as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_transaction_that_raises_leaves_nothing(state: State) -> None:
    with pytest.raises(ZeroDivisionError), state.write() as db:
        rows.insert(db, NewSnapshot("a", None, Kind.ACTIVE, 1, {"x": "y"}))
        raise ZeroDivisionError
    assert snapshot(state, "b", None, Kind.ACTIVE) == 1
    with state.read() as db:
        assert [found.key for found in rows.everything(db)] == ["b"]


def test_readers_do_not_wait_for_a_writer(state: State) -> None:
    record(state)
    with state.write() as db:
        db.execute("DELETE FROM layers")
        assert len(state.layers()) == 1  # as it was committed last
    assert state.layers() == []


def test_a_reader_cannot_write(state: State) -> None:
    with pytest.raises(StoreError, match="readonly"), state.read() as db:
        db.execute("DELETE FROM layers")


def test_many_threads_read_and_write_at_once(state: State) -> None:
    barrier = threading.Barrier(8)

    def work(thread: int) -> None:
        barrier.wait()
        for n in range(10):
            found = record(state, f"sha256:{n}")
            state.touch_layers([found.number], thread)
            assert state.layer(found.number).layer_digest == f"sha256:{n}"

    with ThreadPoolExecutor(8) as pool:
        for call in [pool.submit(work, thread) for thread in range(8)]:
            call.result(60)
    assert [layer.number for layer in state.layers()] == list(range(1, 11))


def test_a_closed_state_says_so(tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    state.close()
    with pytest.raises(StoreError, match="closed"):
        state.layers()
    with pytest.raises(StoreError):
        state.next_session()
    state.close()


def test_every_column_says_what_it_is() -> None:
    script = MIGRATIONS[0]
    assert isinstance(script, str)
    for line in script.splitlines():
        declares_column = line.startswith("    ") and not line.lstrip().startswith(("UNIQUE", "PRIMARY"))
        assert not declares_column or " -- " in line, line
