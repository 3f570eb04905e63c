import sqlite3
from pathlib import Path

import pytest

from snapshotter.errors import StateRevision
from snapshotter.store import syncing
from snapshotter.store.cache_db import CacheDB, Trust, read_boot_id
from tests.store.content import (
    DOMAIN,
    bytes_of,
    content,
    du,
    identity_of,
    killed,
    object_path,
    opened,
    put,
    put_all,
    spoil,
    without_digests,
)

SYNCED, LATE = bytes_of(5_000, 1), bytes_of(6_000, 2)
SYNCED_FILE, LATE_FILE = identity_of(SYNCED), identity_of(LATE)
LARGE = bytes_of(100_000, 3)
LARGE_FILE = identity_of(LARGE, 16_384)


def fill_and_die(root: Path) -> None:
    """One object and one chunk that a sync covered, one of each that none did."""
    with killed(root) as store:
        put(store, SYNCED, SYNCED_FILE, 0)
        put(store, LARGE, LARGE_FILE, 0)
        store.sync()
        assert not store.dirty
        put(store, LATE, LATE_FILE, 0)
        put(store, LARGE, LARGE_FILE, 1)
        assert store.dirty


def test_killed_daemon_leaves_everything_trusted_on_the_same_boot(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    with opened(tmp_path) as store:
        assert store.usage().unproven == 0
        assert content(store, SYNCED_FILE) == SYNCED
        assert content(store, LATE_FILE) == LATE
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert partial.missing() == [2, 3, 4, 5, 6]


def test_a_chunk_that_came_after_a_sync_whose_map_was_written_anew_meanwhile_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed(tmp_path) as store:
        put(store, LARGE, LARGE_FILE, 0)
        put(store, LARGE, LARGE_FILE, 1)

        def during_the_sync(_fd: int) -> None:
            partial = store.partial(DOMAIN, LARGE_FILE)
            assert partial is not None
            partial.forget([0, 1])
            put(store, LARGE, LARGE_FILE, 2)

        monkeypatch.setattr(syncing, "syncfs", during_the_sync)
        store.sync()
        assert store.dirty
    spoil(next(tmp_path.glob("partial/*/*.data")), 2 * 16_384 + 5)
    with opened(tmp_path, boot="boot 2") as store:
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert not partial.present(2)


def test_end_in_order_leaves_everything_trusted_on_another_boot(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, LATE, LATE_FILE, 0)
        put(store, LARGE, LARGE_FILE, 1)
    with opened(tmp_path, boot="boot 2") as store:
        assert store.usage().unproven == 0
        assert content(store, LATE_FILE) == LATE
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert partial.read(1, 20_000, 10) == LARGE[20_000:20_010]


def test_after_a_power_loss_objects_without_a_sync_are_not_in_objects_until_proven(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    with opened(tmp_path, boot="boot 2") as store:
        assert object_path(tmp_path, SYNCED_FILE.digest).exists()
        assert not object_path(tmp_path, LATE_FILE.digest).exists()
        assert not store.has(DOMAIN, LATE_FILE.digest, LATE_FILE.size)
        assert store.usage().unproven == 1
        assert store.usage().used == du(tmp_path)
        assert content(store, LATE_FILE) == LATE
        assert object_path(tmp_path, LATE_FILE.digest).exists()
        assert store.usage().unproven == 0
        assert store.usage().used == du(tmp_path)


def test_after_a_power_loss_torn_objects_go_when_first_needed(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    spoil(object_path(tmp_path, LATE_FILE.digest))
    with opened(tmp_path, boot="boot 2") as store:
        assert content(store, LATE_FILE) is None
        assert store.counters.disproved == 1
        assert store.usage().used == du(tmp_path)
        put(store, LATE, LATE_FILE, 0)
        assert content(store, LATE_FILE) == LATE


def test_doubt_outlives_restarts(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    with killed(tmp_path, boot="boot 2") as store:
        assert store.usage().unproven == 1
    with opened(tmp_path, boot="boot 2") as store:
        assert store.usage().unproven == 1
    spoil(object_path(tmp_path, LATE_FILE.digest, top="unproven"))
    with opened(tmp_path, boot="boot 3") as store:
        assert content(store, LATE_FILE) is None
        assert content(store, SYNCED_FILE) == SYNCED


def test_large_unproven_object_waits_for_prove(tmp_path: Path) -> None:
    data = bytes_of((1 << 20) + 1)
    identity = identity_of(data)
    with killed(tmp_path) as store:
        put(store, data, identity, 0)
    with opened(tmp_path, boot="boot 2") as store:
        assert content(store, identity) is None
        assert store.prove(DOMAIN, identity.digest, identity.size)
        assert content(store, identity) == data


def test_a_read_that_proves_an_object_takes_no_lock_of_the_whole_file_system_and_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads answers the kernel as well, which may hold that lock, or make its holder wait, until it is answered."""
    fill_and_die(tmp_path)

    def renamed(*_args: object, src_dir_fd: int, dst_dir_fd: int) -> None:
        assert src_dir_fd == dst_dir_fd, "a rename between directories"

    monkeypatch.setattr("snapshotter.store.tree.os.rename", renamed)
    with opened(tmp_path, boot="boot 2") as store:
        with store._tally.lock_of(LATE_FILE.digest):
            assert content(store, LATE_FILE) is None
        assert store.usage().unproven == 1
        assert content(store, LATE_FILE) == LATE
        assert store.usage().unproven == 0


def test_fetching_again_replaces_what_awaits_proof(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    with opened(tmp_path, boot="boot 2") as store:
        put(store, LATE, LATE_FILE, 0)
        assert store.usage().unproven == 0
        assert not object_path(tmp_path, LATE_FILE.digest, top="unproven").exists()
        assert store.usage().used == du(tmp_path)


def test_unproven_object_without_a_digest_goes(tmp_path: Path) -> None:
    bare = without_digests(LATE_FILE, b"entry")
    with killed(tmp_path) as store:
        put(store, LATE, bare, 0)
    with opened(tmp_path, boot="boot 2") as store:
        assert content(store, bare) is None
        assert store.usage().used == 0


def test_object_fetched_again_after_its_sync_is_not_covered_by_the_old_row(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        put(store, SYNCED, SYNCED_FILE, 0)
        store.sync()
        store.remove(DOMAIN, SYNCED_FILE.digest)
        put(store, LATE, LATE_FILE, 0)
        put(store, SYNCED, SYNCED_FILE, 0)
    spoil(object_path(tmp_path, SYNCED_FILE.digest))
    with opened(tmp_path, boot="boot 2") as store:
        assert content(store, SYNCED_FILE) is None


def test_after_a_power_loss_torn_chunks_are_missing(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    spoil(next((tmp_path / "partial" / DOMAIN).glob("*.data")), 16_384)
    with opened(tmp_path, boot="boot 2") as store:
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert partial.missing() == [1, 2, 3, 4, 5, 6]
        put_all(store, LARGE, LARGE_FILE)
        assert content(store, LARGE_FILE) == LARGE


def test_after_a_power_loss_good_chunks_stay(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    with opened(tmp_path, boot="boot 2") as store:
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert partial.missing() == [2, 3, 4, 5, 6]


def test_after_a_power_loss_chunks_without_a_digest_go(tmp_path: Path) -> None:
    bare = without_digests(LARGE_FILE, b"entry")
    with killed(tmp_path) as store:
        put(store, LARGE, bare, 0)
        store.sync()
        put(store, LARGE, bare, 1)
    with opened(tmp_path, boot="boot 2") as store:
        partial = store.partial(DOMAIN, bare)
        assert partial is not None
        assert partial.missing() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", [None, b"", b"no database at all, but long enough to be looked at " * 20])
def test_lost_cache_db_means_everything_is_proven_again(tmp_path: Path, damage: bytes | None) -> None:
    with opened(tmp_path) as store:
        put(store, SYNCED, SYNCED_FILE, 0)
        put(store, LATE, LATE_FILE, 0)
    spoil(object_path(tmp_path, LATE_FILE.digest))
    (tmp_path / "cache.db").unlink()
    if damage is not None:
        (tmp_path / "cache.db").write_bytes(damage)
    with opened(tmp_path) as store:
        assert store.usage().unproven == 2
        assert content(store, SYNCED_FILE) == SYNCED
        assert content(store, LATE_FILE) is None
        assert store.usage().used == du(tmp_path)


def test_cache_db_lost_twice_merges_what_awaits_proof(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, SYNCED, SYNCED_FILE, 0)
    (tmp_path / "cache.db").unlink()
    shard = object_path(tmp_path, SYNCED_FILE.digest).parent.name
    other = next(data for seed in range(5000) if identity_of(data := bytes_of(10, seed)).digest.hex()[:2] == shard)
    with opened(tmp_path) as store:
        put(store, other, identity_of(other), 0)
        assert store.usage().unproven == 1
    (tmp_path / "cache.db").unlink()
    with opened(tmp_path) as store:
        assert store.usage().unproven == 2
        assert content(store, SYNCED_FILE) == SYNCED
        assert content(store, identity_of(other)) == other


def test_verify_settles_what_awaits_proof(tmp_path: Path) -> None:
    fill_and_die(tmp_path)
    bad = bytes_of(777)
    with killed(tmp_path) as store:
        put(store, bad, identity_of(bad), 0)
    spoil(object_path(tmp_path, identity_of(bad).digest))
    with opened(tmp_path, boot="boot 2") as store:
        result = store.verify(lambda done, total: None)
        assert [info.digest for info in result.bad_objects] == [identity_of(bad).digest]
        assert store.usage().unproven == 0
        assert store.has(DOMAIN, LATE_FILE.digest, LATE_FILE.size)


def test_newer_cache_db_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "cache.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StateRevision):
        CacheDB(tmp_path / "cache.db")


def test_cache_db_damaged_while_in_use_starts_anew(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        put(store, SYNCED, SYNCED_FILE, 0)
        store.sync()
        store._db._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = (tmp_path / "cache.db").stat().st_size
        (tmp_path / "cache.db").write_bytes(b"\xff" * size)
        store._db._connection.execute("PRAGMA shrink_memory")
        put(store, LATE, LATE_FILE, 0)
        store.sync()
    with opened(tmp_path, boot="boot 2") as store:
        assert store.has(DOMAIN, LATE_FILE.digest, LATE_FILE.size)
        assert content(store, SYNCED_FILE) == SYNCED


def test_trust_follows_boot_and_end(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    for boot, expected, clean in (
        ("1", Trust.NONE, False),
        ("1", Trust.ALL, False),
        ("2", Trust.COVERED, True),
        ("3", Trust.ALL, False),
        ("4", Trust.COVERED, False),
    ):
        db = CacheDB(path, boot)
        assert db.trust is expected
        db.begin()
        if clean:
            db.end(exact=True)
        db.close()


def test_boot_id_is_the_kernels() -> None:
    assert len(read_boot_id()) == 36
