import os
import stat
from pathlib import Path

import pytest

from snapshotter.config import CacheConfig
from snapshotter.errors import IntegrityError, StoreError, StoreFull
from snapshotter.store.objects import ObjectStore
from tests.store.content import (
    DOMAIN,
    NO_LIMITS,
    bytes_of,
    content,
    du,
    identity_of,
    object_path,
    opened,
    put,
    put_all,
    sha256,
    spoil,
    without_digests,
)

DATA = bytes_of(10_000)
FILE = identity_of(DATA)
LARGE = bytes_of(100_000, 1)
LARGE_FILE = identity_of(LARGE, 16_384)


def test_committed_file_is_an_object_and_readable(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert put(store, DATA, FILE, 0) is False
        assert store.has(DOMAIN, FILE.digest, FILE.size)
        assert content(store, FILE) == DATA
        assert store.read(DOMAIN, FILE.digest, FILE.size, 9_990, 100) == DATA[9_990:]
        assert object_path(tmp_path, FILE.digest).read_bytes() == DATA


def test_objects_are_private_and_read_only(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        path = object_path(tmp_path, FILE.digest)
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        for directory in (path.parent, path.parent.parent, tmp_path / "objects", tmp_path / "partial"):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_object_of_another_size_is_absent(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        for size in (0, FILE.size - 1, FILE.size + 1):
            assert not store.has(DOMAIN, FILE.digest, size)
            assert store.acquire(DOMAIN, FILE.digest, size) is None
            assert store.read(DOMAIN, FILE.digest, size, 0, 10) is None
        assert content(store, FILE) == DATA


def test_planted_symlinks_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / FILE.digest.hex()).write_bytes(DATA)
    root = tmp_path / "root"
    with opened(root) as store:
        shard = object_path(root, FILE.digest).parent
        shard.parent.mkdir()
        shard.symlink_to(outside)
        assert content(store, FILE) is None
        with pytest.raises(StoreError):
            put(store, DATA, FILE, 0)
        shard.unlink()
        shard.mkdir()
        object_path(root, FILE.digest).symlink_to(outside / FILE.digest.hex())
        assert content(store, FILE) is None
        put(store, DATA, FILE, 0)
        assert not object_path(root, FILE.digest).is_symlink()
        assert content(store, FILE) == DATA


def test_planted_fifo_does_not_block(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        object_path(tmp_path, FILE.digest).parent.mkdir(parents=True)
        os.mkfifo(object_path(tmp_path, FILE.digest))
        assert content(store, FILE) is None


def test_truncated_object_is_removed_and_counts_as_absent(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        assert content(store, FILE) == DATA
        os.truncate(object_path(tmp_path, FILE.digest), 100)
        assert content(store, FILE) is None
        assert store.counters.unreadable == 1
        put(store, DATA, FILE, 0)
        assert content(store, FILE) == DATA


def test_bad_domain_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for domain in ("", "..", "a/b", "A", "x" * 65):
            with pytest.raises(StoreError, match="sharing domain"):
                store.writer(domain, FILE, 0)


def test_second_domain_links_what_it_has_fetched(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0, "a")
        used = store.usage().used
        assert not store.has("b", FILE.digest, FILE.size)
        put(store, DATA, FILE, 0, "b")
        first, second = (object_path(tmp_path, FILE.digest, domain).stat() for domain in ("a", "b"))
        assert first.st_ino == second.st_ino
        assert store.usage().used == used == du(tmp_path)
        assert store.usage().domains["b"].object_bytes == used
    with opened(tmp_path) as store:
        assert store.usage().used == used
        assert store.remove("a", FILE.digest) == 0
        assert store.usage().used == used
        assert store.remove("b", FILE.digest) == used
        assert store.usage().used == 0 == du(tmp_path)


def test_wrong_bytes_link_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0, "a")
        with pytest.raises(IntegrityError):
            put(store, bytes(FILE.size), FILE, 0, "b")
        assert not store.has("b", FILE.digest, FILE.size)


def test_large_file_of_a_second_domain_is_linked_when_complete(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, LARGE_FILE, "a")
        put_all(store, LARGE, LARGE_FILE, "b")
        one, other = (object_path(tmp_path, LARGE_FILE.digest, domain).stat() for domain in ("a", "b"))
        assert one.st_ino == other.st_ino
        assert store.usage().used == du(tmp_path)


def test_derived_names_are_never_linked(tmp_path: Path) -> None:
    bare = without_digests(FILE, b"entry")
    with opened(tmp_path) as store:
        put(store, DATA, bare, 0, "a")
        put(store, bytes_of(FILE.size, 5), bare, 0, "b")
        assert content(store, bare, "a") == DATA
        assert content(store, bare, "b") == bytes_of(FILE.size, 5)


def test_usage_agrees_with_du_and_survives_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for seed in range(50):
            data = bytes_of(1 + seed * 700, seed)
            put(store, data, identity_of(data), 0)
        put(store, LARGE, LARGE_FILE, 2)
        for seed in range(0, 50, 3):
            assert store.remove(DOMAIN, sha256(bytes_of(1 + seed * 700, seed))) > 0
        usage = store.usage()
        assert usage.used == du(tmp_path)
        assert usage.domains[DOMAIN].objects == 33
        assert usage.domains[DOMAIN].partials == 1
    with opened(tmp_path) as store:
        assert store.usage() == usage


def test_open_object_that_was_removed_stays_readable_and_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        handle = store.acquire(DOMAIN, FILE.digest, FILE.size)
        assert handle is not None
        with handle:
            freed = store.remove(DOMAIN, FILE.digest)
            assert store.usage().deleted_open == freed == store.usage().used
            assert os.pread(handle.fd, FILE.size, 0) == DATA
            assert content(store, FILE) is None
        assert store.usage().used == 0


def test_quota_is_an_upper_bound(tmp_path: Path) -> None:
    with opened(tmp_path, CacheConfig(quota=50_000, min_free=0)) as store:
        with pytest.raises(StoreFull, match=r"cache\.quota"):
            for seed in range(100):
                data = bytes_of(9_000, seed)
                put(store, data, identity_of(data), 0)
        assert 0 < store.usage().used <= 50_000
        assert store.over_limit() > 0


def test_free_space_floor_stops_writing(tmp_path: Path) -> None:
    with opened(tmp_path, CacheConfig(min_free=1 << 60)) as store:
        with pytest.raises(StoreFull, match=r"cache\.min_free"):
            put(store, DATA, FILE, 0)
        assert store.over_limit() == 0


def test_evict_takes_candidates_in_order_and_no_more_than_needed(tmp_path: Path) -> None:
    files = [bytes_of(8_192, seed) for seed in range(10)]
    with opened(tmp_path) as store:
        for data in files:
            put(store, data, identity_of(data), 0)
        put(store, LARGE, LARGE_FILE, 0)
        candidates = [(DOMAIN, LARGE_FILE.digest, LARGE_FILE.size), *((DOMAIN, sha256(d), len(d)) for d in files)]
        before = store.usage().used
        evicted = store.evict(iter(candidates), 40_000)
        assert evicted.partials == 1
        assert evicted.bytes == before - store.usage().used >= 40_000
        assert [store.has(DOMAIN, sha256(data), 8_192) for data in files].count(True) == 10 - evicted.objects
        assert store.has(DOMAIN, sha256(files[-1]), 8_192)
        assert store.partial(DOMAIN, LARGE_FILE) is None


def test_evict_leaves_partial_files_in_use(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, LARGE, LARGE_FILE, 0)
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        with partial.borrow():
            assert store.evict([(DOMAIN, LARGE_FILE.digest, LARGE_FILE.size)], 1).partials == 0
        assert store.evict([(DOMAIN, LARGE_FILE.digest, LARGE_FILE.size)], 1).partials == 1
        assert partial.gone
        assert partial.read(0, 0, 10) is None


def test_iterate_lists_objects_and_partials(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        put(store, LARGE, LARGE_FILE, 0)
        assert [(info.digest, info.size) for info in store.iterate(DOMAIN)] == [(FILE.digest, FILE.size)]
        assert [(info.digest, info.size) for info in store.iterate_partials(DOMAIN)] == [
            (LARGE_FILE.digest, LARGE_FILE.size)
        ]
        assert store.domains() == [DOMAIN]


def test_verify_finds_and_removes_what_is_bad(tmp_path: Path) -> None:
    good = bytes_of(5_000, 3)
    bare = without_digests(identity_of(good), b"entry")
    with opened(tmp_path) as store:
        for data, identity in ((DATA, FILE), (good, identity_of(good)), (good, bare)):
            put(store, data, identity, 0)
        for ordinal in range(3):
            put(store, LARGE, LARGE_FILE, ordinal)
        spoil(object_path(tmp_path, FILE.digest))
        spoil(next((tmp_path / "partial" / DOMAIN).glob("*.data")), 20_000)
        seen: list[tuple[int, int]] = []
        result = store.verify(lambda done, total: seen.append((done, total)))
        assert [info.digest for info in result.bad_objects] == [FILE.digest]
        assert (result.objects, result.unverifiable) == (3, 1)
        assert (result.chunks, result.bad_chunks) == (3, 1)
        assert seen[-1][0] == seen[-1][1]
        assert content(store, FILE) is None
        assert content(store, identity_of(good)) == good
        partial = store.partial(DOMAIN, LARGE_FILE)
        assert partial is not None
        assert [ordinal for ordinal in range(3) if partial.present(ordinal)] == [0, 2]
        put_all(store, LARGE, LARGE_FILE)
        assert content(store, LARGE_FILE) == LARGE


def test_what_was_written_aside_is_gone_after_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "partial" / DOMAIN
    directory.mkdir(parents=True)
    for name in ("7.tmp", f"{'ab' * 32}.data", f"{'cd' * 32}.map"):
        (directory / name).write_bytes(b"left behind")
    with opened(tmp_path):
        assert list(directory.iterdir()) == []


def test_root_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("in the way")
    with pytest.raises(StoreError), opened(tmp_path):
        pass


def test_store_can_be_told_to_close_with_handles_out(tmp_path: Path) -> None:
    with opened(tmp_path, NO_LIMITS) as store:
        put(store, DATA, FILE, 0)
        handle = store.acquire(DOMAIN, FILE.digest, FILE.size)
        assert handle is not None
    assert os.pread(handle.fd, 10, 0) == DATA[:10]
    handle.release()
    assert isinstance(store, ObjectStore)
