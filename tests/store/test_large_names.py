"""Large files under the names by which an overlay finds them: there with the object, gone with it, and in no account."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.full_disk import _delete
from snapshotter.store.identity import FileIdentity, large_name
from snapshotter.store.objects import ObjectStore
from snapshotter.store.tally import Usage
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

LARGE = bytes_of(100_000, 3)
FILE, CUT_OTHERWISE = identity_of(LARGE, 16_384), identity_of(LARGE, 30_000)
SMALL = bytes_of(5_000, 4)
SMALL_FILE = identity_of(SMALL)


def path_of(root: Path, identity: FileIdentity = FILE, domain: str = DOMAIN, top: str = "objects") -> Path:
    """Where an overlay finds a large file."""
    return object_path(root, identity.digest, domain, top).with_name(large_name(identity))


def names(root: Path, top: str = "objects") -> list[str]:
    """The names by identity in all domains."""
    return sorted(path.name for path in (root / top).rglob("*") if "-" in path.name and path.is_file())


def same_file(one: Path, other: Path) -> bool:
    return one.stat().st_ino == other.stat().st_ino


def usage(store: ObjectStore) -> Usage:
    """By a count of what is on disk now."""
    store._tally.recount(store._placement.scan, again=True)
    return store.usage()


# --- given


def test_a_large_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for ordinal in range(len(FILE.chunks)):
            assert not path_of(tmp_path).exists()
            assert not store.name_large(DOMAIN, FILE)
            put(store, LARGE, FILE, ordinal)
        assert path_of(tmp_path).read_bytes() == LARGE
        assert same_file(path_of(tmp_path), object_path(tmp_path, FILE.digest))
        assert store.name_large(DOMAIN, FILE)
        assert names(tmp_path) == [large_name(FILE)]


def test_a_small_file_goes_by_its_digest_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert not store.name_large(DOMAIN, SMALL_FILE)
        put(store, SMALL, SMALL_FILE, 0)
        assert store.name_large(DOMAIN, SMALL_FILE)
        assert names(tmp_path) == []


def test_an_object_that_came_in_other_chunks_is_found_by_these_too(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, CUT_OTHERWISE)
        assert not path_of(tmp_path).exists()
        for _ in range(2):
            assert store.name_large(DOMAIN, FILE)
        assert names(tmp_path) == sorted([large_name(FILE), large_name(CUT_OTHERWISE)])
        assert same_file(path_of(tmp_path), path_of(tmp_path, CUT_OTHERWISE))
        assert store.usage().used == usage(store).used == du(tmp_path)


def test_an_object_that_came_in_one_chunk_is_found_by_its_chunks(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, LARGE, identity_of(LARGE), 0)
        assert names(tmp_path) == []
        assert store.name_large(DOMAIN, FILE)
        assert path_of(tmp_path).read_bytes() == LARGE


def test_an_object_of_another_size_is_not_given_the_name(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        longer = FILE._replace(size=FILE.size + 1, chunks=(*FILE.chunks, (FILE.size, 1, bytes(32))))
        assert not store.name_large(DOMAIN, longer)
        assert names(tmp_path) == [large_name(FILE)]


def test_a_file_without_a_digest_has_its_name_as_well(tmp_path: Path) -> None:
    bare = without_digests(FILE, b"entry")
    with opened(tmp_path) as store:
        put_all(store, LARGE, bare)
        assert path_of(tmp_path, bare).read_bytes() == LARGE
        assert names(tmp_path) == [large_name(bare)]
        store.remove(DOMAIN, bare.digest)
        assert names(tmp_path) == []


def test_every_domain_has_names_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for domain in ("a", "b"):
            put_all(store, LARGE, FILE, domain)
        assert same_file(path_of(tmp_path, domain="a"), path_of(tmp_path, domain="b"))
        assert usage(store).used == du(tmp_path)
        assert store.remove("a", FILE.digest) == 0
        assert not path_of(tmp_path, domain="a").exists()
        assert path_of(tmp_path, domain="b").read_bytes() == LARGE
        assert store.usage().used == usage(store).used == du(tmp_path) > 0
        assert store.remove("b", FILE.digest) > 0
        assert store.usage().used == usage(store).used == du(tmp_path) == 0


def test_a_name_that_leads_to_another_file_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        path_of(tmp_path).unlink()
        path_of(tmp_path).write_bytes(bytes(FILE.size))
        assert store.name_large(DOMAIN, FILE)
        assert same_file(path_of(tmp_path), object_path(tmp_path, FILE.digest))
        assert names(tmp_path) == [large_name(FILE)]


def test_a_symlink_planted_under_the_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("outside")
    root = tmp_path / "root"
    with opened(root) as store:
        put_all(store, LARGE, FILE)
        path_of(root).unlink()
        path_of(root).symlink_to(outside)
        assert store.name_large(DOMAIN, FILE)
        assert path_of(root).read_bytes() == LARGE
        assert outside.read_text() == "outside"


@pytest.mark.parametrize(("code", "raised"), [(errno.EMLINK, StoreError), (errno.ENOSPC, StoreFull)])
def test_a_name_that_the_disk_refuses_costs_no_content_and_comes_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    raised: type[StoreError],
) -> None:
    link = os.link

    def refused(source: Any, target: Any, **directories: Any) -> None:
        if "-" in target:
            raise OSError(code, os.strerror(code))
        link(source, target, **directories)

    with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refused)
            put_all(store, LARGE, FILE)
            assert content(store, FILE) == LARGE
            assert "no name by its chunks" in caplog.text
            with pytest.raises(raised, match=os.strerror(code)):
                store.name_large(DOMAIN, FILE)
        assert names(tmp_path) == []
        assert store.usage().used == du(tmp_path)
        assert store.name_large(DOMAIN, FILE)
        assert path_of(tmp_path).read_bytes() == LARGE


def test_listings_show_the_object_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.name_large(DOMAIN, CUT_OTHERWISE)
        assert [info.digest for info in store.iterate(DOMAIN)] == [FILE.digest]
        assert store.usage().domains[DOMAIN].objects == 1


# --- taken away


def evict(store: ObjectStore, _root: Path) -> None:
    assert store.evict([(DOMAIN, FILE.digest, FILE.size)], 1).objects == 1


def remove(store: ObjectStore, _root: Path) -> None:
    assert store.remove(DOMAIN, FILE.digest) >= FILE.size


def find_damaged(store: ObjectStore, root: Path) -> None:
    spoil(object_path(root, FILE.digest))
    assert [info.digest for info in store.verify(lambda done, total: None).bad_objects] == [FILE.digest]


def find_short(store: ObjectStore, root: Path) -> None:
    os.truncate(object_path(root, FILE.digest), 10)
    put(store, LARGE, identity_of(LARGE), 0)
    assert content(store, FILE) == LARGE
    store.remove(DOMAIN, FILE.digest)


@pytest.mark.parametrize("gone", [evict, remove, find_damaged, find_short])
def test_names_go_with_the_object(tmp_path: Path, gone: Callable[[ObjectStore, Path], None]) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.name_large(DOMAIN, CUT_OTHERWISE)
        gone(store, tmp_path)
        assert names(tmp_path) == []
        assert store.usage().used == usage(store).used == du(tmp_path) == 0


def test_a_torn_object_that_is_replaced_leaves_none_of_its_names(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.name_large(DOMAIN, CUT_OTHERWISE)
        os.truncate(object_path(tmp_path, FILE.digest), 10)
        put(store, LARGE, identity_of(LARGE), 0)
        assert names(tmp_path) == []
        assert store.name_large(DOMAIN, FILE)
        assert path_of(tmp_path).read_bytes() == LARGE


def test_a_removed_file_that_is_read_stays_readable_and_counts_until_then(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        used = store.usage().used
        handle = store.acquire(DOMAIN, FILE.digest, FILE.size)
        assert handle is not None
        store.remove(DOMAIN, FILE.digest)
        assert store.usage().deleted_open == store.usage().used == used
        assert os.pread(handle.fd, FILE.size, 0) == LARGE
        handle.release()
        assert store.usage().used == du(tmp_path) == 0


def test_room_made_on_a_full_disk_takes_all_names_of_a_file(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.name_large(DOMAIN, CUT_OTHERWISE)
    used = du(tmp_path)
    assert _delete(tmp_path, 1) == used
    assert (names(tmp_path), du(tmp_path)) == ([], 0)


def test_tidying_takes_names_without_their_object_and_nothing_else(tmp_path: Path) -> None:
    lost = bytes_of(70_000, 5)
    lost_file = identity_of(lost, 16_384)
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        put_all(store, lost, lost_file)
        put(store, SMALL, SMALL_FILE, 0)
        used = store.usage().used
        half_made = path_of(tmp_path).with_name(f"{large_name(CUT_OTHERWISE)}.tmp")
        os.link(path_of(tmp_path), half_made)
        path_of(tmp_path, CUT_OTHERWISE).write_bytes(b"not the object")
        (path_of(tmp_path).parent / "not-ours").touch()
        object_path(tmp_path, lost_file.digest).unlink()
        found = store.verify(lambda done, total: None)
        assert [info.digest for info in found.missing] == [lost_file.digest]
        assert names(tmp_path) == sorted([large_name(FILE), "not-ours"])
        assert content(store, FILE) == LARGE
        assert content(store, SMALL_FILE) == SMALL
        assert store.usage().used == du(tmp_path) < used


# --- after a power loss


def test_what_a_sync_covered_keeps_its_name(tmp_path: Path) -> None:
    with killed(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.sync()
    with opened(tmp_path, boot="boot 2") as store:
        assert path_of(tmp_path).read_bytes() == LARGE
        assert store.usage().unproven == 0


@pytest.mark.parametrize("lost", ["sync", "cache.db"])
def test_what_awaits_proof_has_no_name_until_it_is_proven(tmp_path: Path, lost: str) -> None:
    with killed(tmp_path) as store:
        put_all(store, LARGE, FILE)
        store.name_large(DOMAIN, CUT_OTHERWISE)
        if lost == "cache.db":
            store.sync()
    if lost == "cache.db":
        (tmp_path / "cache.db").unlink()
    with opened(tmp_path, boot="boot 2") as store:
        assert names(tmp_path) == names(tmp_path, "unproven") == []
        assert not store.name_large(DOMAIN, FILE)
        assert store.usage().unproven == 1
        assert store.prove(DOMAIN, FILE.digest, FILE.size)
        assert store.name_large(DOMAIN, FILE)
        assert path_of(tmp_path).read_bytes() == LARGE
        assert names(tmp_path) == [large_name(FILE)]
        assert store.usage().used == usage(store).used == du(tmp_path)


@pytest.mark.parametrize("lost", ["sync", "cache.db"])
def test_what_is_torn_gets_no_name_again(tmp_path: Path, lost: str) -> None:
    with killed(tmp_path) as store:
        put_all(store, LARGE, FILE)
        if lost == "cache.db":
            store.sync()
    if lost == "cache.db":
        (tmp_path / "cache.db").unlink()
    spoil(object_path(tmp_path, FILE.digest))
    with opened(tmp_path, boot="boot 2") as store:
        assert not store.prove(DOMAIN, FILE.digest, FILE.size)
        assert not store.name_large(DOMAIN, FILE)
        assert names(tmp_path) == names(tmp_path, "unproven") == []
        assert store.usage().used == du(tmp_path) == 0


def test_names_in_a_shard_that_awaits_proof_already_are_dropped_too(tmp_path: Path) -> None:
    """The shard cannot be moved as a whole then."""
    neighbour = next(
        data for seed in range(5000) if identity_of(data := bytes_of(10, seed)).digest[0] == FILE.digest[0]
    )
    with opened(tmp_path) as store:
        put(store, neighbour, identity_of(neighbour), 0)
    (tmp_path / "cache.db").unlink()
    with opened(tmp_path) as store:
        put_all(store, LARGE, FILE)
        assert store.usage().unproven == 1
    (tmp_path / "cache.db").unlink()
    with opened(tmp_path) as store:
        assert names(tmp_path) == names(tmp_path, "unproven") == []
        assert store.usage().unproven == 2


def test_a_name_that_lost_its_object_is_not_believed_after_a_power_loss(tmp_path: Path) -> None:
    """Somebody deleted the object and not its other name, of which no sync had covered a byte."""
    with killed(tmp_path) as store:
        put_all(store, LARGE, FILE)
        object_path(tmp_path, FILE.digest).unlink()
    spoil(path_of(tmp_path))
    with opened(tmp_path, boot="boot 2"):
        assert names(tmp_path) == []


# --- late


def test_a_large_file_that_has_just_become_whole_is_found_late_by_its_chunks(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert not store.link_late(DOMAIN, FILE.digest, FILE.size, large_name(FILE))
        put_all(store, LARGE, FILE)
        assert store.link_late(DOMAIN, FILE.digest, FILE.size, large_name(FILE))
        late = path_of(tmp_path, top="late")
        assert same_file(late, object_path(tmp_path, FILE.digest))
        assert not late.with_name(FILE.digest.hex()).exists()
        assert store.usage().used == usage(store).used == du(tmp_path)
        store.remove(DOMAIN, FILE.digest)
        assert (names(tmp_path), late.read_bytes()) == ([], LARGE)
        store.sweep_late(0)
        assert names(tmp_path, "late") == []
        assert store.usage().used == usage(store).used == du(tmp_path) == 0
