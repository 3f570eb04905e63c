import os
import shutil
import threading
from pathlib import Path

import pytest

from snapshotter.errors import StoreError
from snapshotter.store.disk import syncfs
from snapshotter.store.full_disk import MADE_ROOM
from snapshotter.store.objects import ObjectStore
from snapshotter.store.placement import ObjectInfo
from snapshotter.store.verification import Verified
from tests.store.content import (
    DOMAIN,
    bytes_of,
    content,
    du,
    identity_of,
    killed,
    object_path,
    opened,
    place_of,
    put,
    put_all,
    spoil,
)

FILES = [bytes_of(3000 + 1000 * seed, seed) for seed in range(6)]
IDENTITIES = [identity_of(data) for data in FILES]
LARGE = bytes_of(100_000, 9)
LARGE_FILE = identity_of(LARGE, 16_384)


def fill(store: ObjectStore, *numbers: int, domain: str = DOMAIN) -> None:
    for number in numbers:
        put(store, FILES[number], IDENTITIES[number], 0, domain)


def delete(root: Path, *numbers: int, domain: str = DOMAIN) -> None:
    """As an admin with `rm` does, or a script."""
    for number in numbers:
        object_path(root, IDENTITIES[number].digest, domain).unlink()


def verify(store: ObjectStore) -> Verified:
    return store.verify(lambda done, total: None)


def missing(store: ObjectStore) -> list[int]:
    return sorted(IDENTITIES.index(next(i for i in IDENTITIES if i.digest == m.digest)) for m in verify(store).missing)


def test_whole_cache_has_nothing_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
        store.sync()
        fill(store, 2)
        put_all(store, LARGE, LARGE_FILE)
        assert missing(store) == []
    with opened(tmp_path) as store:
        assert missing(store) == []


def test_objects_deleted_by_somebody_else_are_missing_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
        store.sync()
        fill(store, 2, 3)
        assert store.usage().used == du(tmp_path)
        delete(tmp_path, 0, 2)
        found = verify(store)
        assert sorted(found.missing) == sorted(ObjectInfo(DOMAIN, IDENTITIES[n].digest, 0, 0) for n in (0, 2))
        assert (found.objects, found.bad_objects) == (2, [])
        assert store.usage().used == du(tmp_path)
        assert store.usage().domains[DOMAIN].objects == 2
        assert missing(store) == []
        store.sync()
        assert missing(store) == []
        fill(store, 0, 2)
        assert content(store, IDENTITIES[0]) == FILES[0]
        assert store.usage().used == du(tmp_path)
    with opened(tmp_path) as store:
        assert missing(store) == []
        assert store.usage().used == du(tmp_path)


def test_missing_object_that_was_open_is_fetched_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0)
        handle = store.acquire(DOMAIN, IDENTITIES[0].digest, IDENTITIES[0].size)
        assert handle is not None
        delete(tmp_path, 0)
        assert missing(store) == [0]
        assert content(store, IDENTITIES[0]) is None
        assert store.usage().deleted_open == store.usage().used > 0
        assert os.pread(handle.fd, 10, 0) == FILES[0][:10]
        handle.release()
        assert store.usage().used == 0
        fill(store, 0)
        assert content(store, IDENTITIES[0]) == FILES[0]


def test_object_that_went_missing_twice_is_told_twice(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0)
        store.sync()
        for _ in range(2):
            delete(tmp_path, 0)
            assert missing(store) == [0]
            fill(store, 0)


@pytest.mark.parametrize("gone", ["shard", "domain", "place"])
def test_whole_directories_deleted_are_missing_and_can_be_filled_again(tmp_path: Path, gone: str) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
        fill(store, 2, domain="other")
        store.sync()
        fill(store, 3)
        path = object_path(tmp_path, IDENTITIES[0].digest)
        shutil.rmtree({"shard": path.parents[0], "domain": path.parents[1], "place": path.parents[2]}[gone])
        assert missing(store) == {"shard": [0], "domain": [0, 1, 3], "place": [0, 1, 2, 3]}[gone]
        assert store.usage().used == du(tmp_path)
        fill(store, 0, 1)
        assert content(store, IDENTITIES[0]) == FILES[0]
        assert store.usage().used == du(tmp_path)


def test_symlinks_planted_in_place_of_objects_are_missing_objects(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    with opened(root) as store:
        fill(store, 0, 1)
        store.sync()
        path = object_path(root, IDENTITIES[0].digest)
        os.rename(path, outside / path.name)
        path.symlink_to(outside / path.name)
        shard = object_path(root, IDENTITIES[1].digest).parent
        os.rename(shard, outside / "shard")
        shard.symlink_to(outside / "shard")
        assert missing(store) == [0, 1]
        assert store.usage().used == 0
        assert len(list(outside.rglob("*"))) == 3


def test_objects_in_only_one_of_two_domains_are_missing_there(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, domain="a")
        fill(store, 0, domain="b")
        store.sync()
        delete(tmp_path, 0, domain="a")
        assert [info.domain for info in verify(store).missing] == ["a"]
        assert store.usage().used == du(tmp_path)
        store.remove("b", IDENTITIES[0].digest)
        assert store.usage().used == 0


def test_what_was_removed_in_order_is_not_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1, 2)
        store.sync()
        fill(store, 3, 4)
        store.remove(DOMAIN, IDENTITIES[0].digest)
        store.evict([(DOMAIN, IDENTITIES[n].digest, IDENTITIES[n].size) for n in (1, 3)], 1 << 30)
        assert missing(store) == []
        store.sync()
        assert missing(store) == []
        fill(store, 0)
        assert missing(store) == []


def test_what_is_removed_during_a_sync_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At that moment the removal is neither on the list of the store nor in the database."""
    in_sync, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        in_sync.set()
        assert go_on.wait(60)
        syncfs(fd)

    with opened(tmp_path) as store:
        fill(store, 0, 1)
        store.sync()
        fill(store, 2)
        fill(store, 3, domain="new")
        store.remove(DOMAIN, IDENTITIES[0].digest)
        delete(tmp_path, 1, 2)
        delete(tmp_path, 3, domain="new")
        monkeypatch.setattr("snapshotter.store.syncing.syncfs", slow)
        found: list[Verified] = []
        syncing = threading.Thread(target=store.sync)
        verifying = threading.Thread(target=lambda: found.append(verify(store)))
        syncing.start()
        assert in_sync.wait(60)
        verifying.start()
        verifying.join(0.05)
        go_on.set()
        verifying.join()
        syncing.join()
        monkeypatch.undo()
        assert {info.digest for info in found[0].missing} == {IDENTITIES[n].digest for n in (1, 2, 3)}
        assert missing(store) == []
        assert store.usage().used == du(tmp_path) == 0


def test_sync_that_begins_during_a_verification_makes_nothing_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a removal off the list of the store, while the verification still has the row."""
    with opened(tmp_path) as store:
        fill(store, 0)
        store.sync()
        store.remove(DOMAIN, IDENTITIES[0].digest)
        covered = store._db.covered
        threads: list[threading.Thread] = []

        def then_sync(domain: str, shard: str) -> dict[bytes, tuple[int, int]]:
            rows = covered(domain, shard)
            if rows:
                threads.append(threading.Thread(target=store.sync))
                threads[-1].start()
                threads[-1].join(0.1)
            return rows

        monkeypatch.setattr(store._db, "covered", then_sync)
        assert missing(store) == []
        assert len(threads) == 1
        threads[0].join()
        assert not store.dirty


def test_what_a_killed_daemon_removed_is_not_missing_and_later_losses_are(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        fill(store, 0, 1, 2)
        store.sync()
        store.remove(DOMAIN, IDENTITIES[0].digest)
    with killed(tmp_path) as store:
        assert store.usage().used == du(tmp_path)
        delete(tmp_path, 1)
        assert missing(store) == [1]
    with opened(tmp_path) as store:
        assert missing(store) == []
    delete(tmp_path, 2)
    with opened(tmp_path) as store:
        assert missing(store) == [2]


def test_what_was_deleted_while_a_daemon_stopped_in_order_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
    delete(tmp_path, 0)
    with opened(tmp_path, boot="boot 2") as store:
        assert store.usage().used == du(tmp_path)
        assert missing(store) == [0]


def test_rows_of_an_unclean_end_stay_in_doubt_until_they_were_looked_at(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        fill(store, 0)
        store.sync()
        store.remove(DOMAIN, IDENTITIES[0].digest)
    for _ in range(2):
        with opened(tmp_path):
            pass
    with opened(tmp_path) as store:
        assert missing(store) == []


def test_what_was_deleted_to_make_room_is_not_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
    delete(tmp_path, 0)
    (tmp_path / MADE_ROOM).touch()
    with opened(tmp_path) as store:
        assert not (tmp_path / MADE_ROOM).exists()
        assert missing(store) == []
        delete(tmp_path, 1)
        assert missing(store) == [1]


def test_objects_that_await_proof_are_not_missing_and_those_that_failed_it_neither(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        fill(store, 0, 1)
        store.sync()
        for number in (0, 1):
            store.remove(DOMAIN, IDENTITIES[number].digest)
        fill(store, 0, 1)
        # Written back by the kernel at some time before the power went, but for one byte.
        spoil(object_path(tmp_path, IDENTITIES[0].digest))
        os.utime(object_path(tmp_path, IDENTITIES[0].digest), ns=(1, 1))
    with opened(tmp_path, boot="boot 2") as store:
        store.usage()
        assert content(store, IDENTITIES[0]) is None
        found = verify(store)
        assert (found.missing, found.bad_objects) == ([], [])
        assert store.usage().unproven == 0
        assert store.usage().used == du(tmp_path)


def test_unproven_object_deleted_by_somebody_else_is_forgotten(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        fill(store, 0, 1)
    with opened(tmp_path, boot="boot 2") as store:
        object_path(tmp_path, IDENTITIES[0].digest, top="unproven").unlink()
        assert verify(store).missing == []
        assert store.usage().unproven == 0
        assert store.usage().used == du(tmp_path)


def test_lost_cache_db_makes_nothing_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
    (tmp_path / "cache.db").unlink()
    delete(tmp_path, 0)
    with opened(tmp_path) as store:
        assert missing(store) == []


@pytest.mark.parametrize("size", [0, 10, 2999])
def test_truncated_object_is_bad_and_the_account_right_afterwards(tmp_path: Path, size: int) -> None:
    with opened(tmp_path) as store:
        put(store, LARGE, identity_of(LARGE), 0)
        fill(store, 0)
        store.sync()
        assert store.usage().used == du(tmp_path)
        os.truncate(object_path(tmp_path, identity_of(LARGE).digest), size)
        found = verify(store)
        assert [info.digest for info in found.bad_objects] == [identity_of(LARGE).digest]
        assert found.missing == []
        assert store.usage().used == du(tmp_path)
        assert missing(store) == []
        assert content(store, IDENTITIES[0]) == FILES[0]


@pytest.mark.parametrize("offset", [0, 1500, 2999])
def test_object_with_a_flipped_byte_is_bad(tmp_path: Path, offset: int) -> None:
    with opened(tmp_path) as store:
        fill(store, 0, 1)
        store.sync()
        spoil(object_path(tmp_path, IDENTITIES[0].digest), offset)
        found = verify(store)
        assert [info.digest for info in found.bad_objects] == [IDENTITIES[0].digest]
        assert found.missing == []
        assert content(store, IDENTITIES[0]) is None
        assert verify(store).bad_objects == []


def test_partial_files_deleted_by_somebody_else_do_not_stop_a_verification(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, LARGE, LARGE_FILE, 0)
    with opened(tmp_path) as store:
        for path in (tmp_path / "partial" / DOMAIN).iterdir():
            path.unlink()
        assert verify(store).missing == []
        assert store.usage().used == du(tmp_path) == 0


def test_database_that_cannot_be_read_is_a_store_error(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        fill(store, 0)
        store.sync()
        store._db._connection.execute("DROP TABLE covered")
        with pytest.raises(StoreError, match=r"cache\.db"):
            verify(store)


def test_place_is_still_the_only_directory(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, 0)
        shutil.rmtree(tmp_path / "objects")
        assert missing(store) == [0]
        fill(store, 0)
        assert place_of(tmp_path) == store.place
