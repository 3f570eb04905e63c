"""A file system that is really full: tmpfs of a few hundred KiB."""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.full_disk import _delete, open_with_room
from snapshotter.store.objects import ObjectStore
from snapshotter.store.state import State
from tests.store.content import DOMAIN, NO_LIMITS, bytes_of, content, du, identity_of, killed, opened, part, put

SIZE = 768 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with room for `SIZE` bytes."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(root: Path) -> None:
    """Somebody else's bytes, until nothing fits any more."""
    with (root / "filler").open("ab", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue


def fill_objects(store: ObjectStore) -> list[bytes]:
    """Objects until one does not fit; those that did."""
    stored = []
    with pytest.raises(StoreFull, match="free space"):
        for seed in range(100):
            data = bytes_of(50_000, seed)
            put(store, data, identity_of(data), 0)
            stored.append(data)
    return stored


def test_full_disk_refuses_objects_whole_and_keeps_the_others(small: Path) -> None:
    with opened(small) as store:
        stored = fill_objects(store)
        assert len(stored) > 3
        for data in stored:
            assert content(store, identity_of(data)) == data
        assert list((small / "partial" / DOMAIN).iterdir()) == []
        assert store.usage().used == du(small)
        store.evict([(DOMAIN, identity_of(data).digest, len(data)) for data in stored], 100_000)
        more = bytes_of(50_000, 200)
        put(store, more, identity_of(more), 0)
        assert content(store, identity_of(more)) == more


def test_full_disk_refuses_chunks_whole_and_takes_them_later(small: Path) -> None:
    data = bytes_of(2_000_000)
    identity = identity_of(data, 65_536)
    with opened(small) as store:
        stored = []
        with pytest.raises(StoreFull):
            for ordinal in range(len(identity.chunks)):
                put(store, data, identity, ordinal)
                stored.append(ordinal)
        partial = store.partial(DOMAIN, identity)
        assert partial is not None
        assert stored
        for ordinal in range(len(identity.chunks)):
            offset, size, _ = identity.chunks[ordinal]
            expected = part(data, identity, ordinal) if ordinal in stored else None
            assert partial.read(ordinal, offset, size) == expected
        subprocess.run(["mount", "-o", f"remount,size={8 * SIZE}", str(small)], check=True)
    with opened(small) as store:
        partial = store.partial(DOMAIN, identity)
        assert partial is not None
        assert [ordinal for ordinal in range(len(identity.chunks)) if partial.present(ordinal)] == stored
        for ordinal in range(len(identity.chunks)):
            put(store, data, identity, ordinal)
        assert content(store, identity) == data


def test_full_disk_while_writing_aside_leaves_nothing(small: Path) -> None:
    data = bytes_of(6 << 20)
    with opened(small) as store:
        with store.writer(DOMAIN, identity_of(data), 0) as writer, pytest.raises(StoreFull):
            for offset in range(0, len(data), 1 << 20):
                writer.write(data[offset : offset + (1 << 20)])
        assert list((small / "partial" / DOMAIN).iterdir()) == []
        assert du(small) == 0


def test_full_disk_does_not_stop_reading_or_removing(small: Path) -> None:
    data = bytes_of(200_000, 500)
    identity = identity_of(data, 50_000)
    with opened(small) as store:
        put(store, data, identity, 0)
        stored = fill_objects(store)
        (small / "filler").write_bytes(b"x" * 10)
        with pytest.raises(OSError, match="No space"), (small / "filler").open("ab") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()
        partial = store.partial(DOMAIN, identity)
        assert partial is not None
        assert partial.read(0, 0, 100) == data[:100]
        assert content(store, identity_of(stored[0])) == stored[0]
        assert store.remove(DOMAIN, identity_of(stored[0]).digest) > 0
        assert store.remove(DOMAIN, identity.digest) > 0
        (small / "filler").unlink()


def test_sync_on_a_full_disk_says_so_and_can_be_repeated(small: Path) -> None:
    with opened(small) as store:
        stored = fill_objects(store)
        with pytest.raises(OSError, match="No space"), (small / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        with pytest.raises(StoreFull, match=r"cache\.db"):
            store.sync()
        assert store.dirty
        (small / "filler").unlink()
        store.sync()
        assert not store.dirty
        assert content(store, identity_of(stored[0])) == stored[0]


@pytest.mark.parametrize("first", ["state.db", "cache.db"])
def test_database_of_a_full_disk_opens_at_the_cost_of_cached_files(small: Path, first: str) -> None:
    """The disk filled up while no daemon ran; only one that starts can make room, and what it deletes can be fetched."""
    large = bytes_of(200_000)
    identity = identity_of(large, 65_536)
    with killed(small) as store:
        put(store, large, identity, 0)
        State(small / "state.db").close()
        fill_objects(store)
    fill(small)

    def open_state() -> None:
        with closing(State(small / "state.db")) as state:
            state.next_session()

    def open_cache() -> None:
        with closing(ObjectStore(small, CacheDB(small / "cache.db", "boot 1"), NO_LIMITS)) as store:
            partial = store.partial(DOMAIN, identity)
            assert partial is None or not partial.present(0)

    opening = open_state if first == "state.db" else open_cache
    with pytest.raises(StoreError):
        opening()
    open_with_room(small, opening)


def test_full_disk_without_a_cache_stays_an_error(small: Path) -> None:
    fill(small)
    with pytest.raises(StoreError):
        open_with_room(small, lambda: State(small / "state.db"))


def test_error_that_room_would_not_change_deletes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        data = bytes_of(5000)
        put(store, data, identity_of(data), 0)
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError):
        open_with_room(tmp_path, lambda: State(tmp_path / "state.db"))
    with opened(tmp_path) as store:
        assert content(store, identity_of(data)) == data


def test_full_disk_of_objects_with_late_names_opens(small: Path) -> None:
    """A file with a second name gives nothing back when the first one goes."""
    with killed(small) as store:
        State(small / "state.db").close()
        for data in fill_objects(store):
            assert store.link_late(DOMAIN, identity_of(data).digest, len(data))
    fill(small)

    def open_store() -> None:
        with closing(ObjectStore(small, CacheDB(small / "cache.db", "boot 1"), NO_LIMITS)) as store:
            assert store.verify(lambda done, total: None).missing == []
            assert store.usage().used == du(small)

    with pytest.raises(StoreError):
        open_store()
    open_with_room(small, open_store)


def test_bytes_that_only_late_names_hold_go_first(tmp_path: Path) -> None:
    gone, kept = bytes_of(50_000, 1), bytes_of(60_000, 2)
    with killed(tmp_path) as store:
        for data in (gone, kept):
            put(store, data, identity_of(data), 0)
            store.link_late(DOMAIN, identity_of(data).digest, len(data))
        store.remove(DOMAIN, identity_of(gone).digest)
    assert _delete(tmp_path, 40_000) >= 50_000
    with opened(tmp_path) as store:
        assert content(store, identity_of(kept)) == kept
        assert store.usage().used == du(tmp_path)


def test_files_of_two_domains_count_with_their_last_name(tmp_path: Path) -> None:
    data = bytes_of(50_000)
    with killed(tmp_path) as store:
        for domain in ("a", "b"):
            put(store, data, identity_of(data), 0, domain)
    assert _delete(tmp_path, 1) >= 50_000
    assert du(tmp_path) == 0


def test_deleting_follows_no_symlink(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "node").mkdir(parents=True)
    (outside / "node" / "file").write_text("outside")
    root = tmp_path / "root"
    (root / "objects").mkdir(parents=True)
    for name in ("late", "partial", "unproven", "objects/_abcdefghij234"):
        (root / name).symlink_to(outside)
    assert _delete(root, 1 << 30) == 0
    assert (outside / "node" / "file").read_text() == "outside"
