"""Snapshots as rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import Reason, StoreError
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state import State
from snapshotter.store.state_snapshots import ChainLink, Kind, NewSnapshot, SnapshotRecord


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """An empty state."""
    opened = State(tmp_path / "state.db")
    yield opened
    opened.close()


def test_every_field_comes_back(state: State) -> None:
    with state.write() as db:
        parent = rows.insert(db, NewSnapshot("parent", None, Kind.COMMITTED, 5, {}))
        rows.insert(
            db,
            NewSnapshot(
                "child\x00/é", parent, Kind.ACTIVE, 1_700_000_000_123_456_789, {"a": "1", "empty": ""},
                not_lazy=Reason.BUSY, not_lazy_message="too many", reference="r/x:1",
            ),
        )  # fmt: skip
    with state.read() as db:
        assert rows.find(db, "child\x00/é") == SnapshotRecord(
            id=2, key="child\x00/é", parent="parent", parent_id=1, kind=Kind.ACTIVE,
            created_ns=1_700_000_000_123_456_789, updated_ns=1_700_000_000_123_456_789, size=None, inodes=None,
            layer_number=None, not_lazy=Reason.BUSY, not_lazy_message="too many", reference="r/x:1",
            labels={"a": "1"},
        )  # fmt: skip
        assert rows.everything(db) == [rows.find(db, "parent"), rows.find(db, "child\x00/é")]
        assert rows.find(db, "none") is None


def test_a_chain_is_topmost_first(state: State) -> None:
    parent = None
    with state.write() as db:
        for number in range(130):
            parent = rows.insert(db, NewSnapshot(f"k{number}", parent, Kind.COMMITTED, 1, {}))
    with state.read() as db:
        assert rows.chain(db, parent) == [ChainLink(number, None) for number in range(130, 0, -1)]
        assert rows.chain(db, None) == []
        assert rows.child_of(db, 1) == "k1"
        assert rows.child_of(db, 130) is None


def test_targets_are_found_by_label_parent_and_kind(state: State) -> None:
    with state.write() as db:
        base = rows.insert(db, NewSnapshot("base", None, Kind.COMMITTED, 1, {"ref": "c"}))
        rows.insert(db, NewSnapshot("active", None, Kind.ACTIVE, 1, {"ref": "c"}))
        rows.insert(db, NewSnapshot("on base", base, Kind.COMMITTED, 1, {"ref": "c", "x": "y"}))
        rows.insert(db, NewSnapshot("other", None, Kind.COMMITTED, 1, {"ref": "d"}))
        assert [found.key for found in rows.find_committed(db, "ref", "c", None)] == ["base"]
        [found] = rows.find_committed(db, "ref", "c", base)
    assert (found.key, found.labels) == ("on base", {"ref": "c", "x": "y"})


def test_keys_are_unique_and_parents_stay(state: State) -> None:
    with state.write() as db:
        base = rows.insert(db, NewSnapshot("base", None, Kind.COMMITTED, 1, {}))
        rows.insert(db, NewSnapshot("child", base, Kind.ACTIVE, 1, {}))
    with pytest.raises(StoreError), state.write() as db:
        rows.insert(db, NewSnapshot("base", None, Kind.ACTIVE, 1, {}))
    with pytest.raises(StoreError), state.write() as db:
        rows.delete(db, base)


def test_labels_go_with_their_snapshot_and_ids_do_not_come_back(state: State) -> None:
    with state.write() as db:
        assert rows.next_identifier(db) == 1
        first = rows.insert(db, NewSnapshot("a", None, Kind.ACTIVE, 1, {"a": "1"}))
        rows.delete(db, first)
        assert db.execute("SELECT count(*) FROM labels").fetchone()[0] == 0
        assert rows.insert(db, NewSnapshot("a", None, Kind.ACTIVE, 1, {})) == 2
        assert (rows.is_there(db, 1), rows.is_there(db, 2)) == (False, True)
        assert rows.next_identifier(db) == 3
        assert rows.identifiers(db) == {2}
