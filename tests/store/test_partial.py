import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.store import partials as partials_module
from snapshotter.store.objects import ObjectStore
from snapshotter.store.partial import PartialFile
from tests.store.content import DOMAIN, bytes_of, content, identity_of, opened, part, put, put_all

DATA = bytes_of(100_000)
FILE = identity_of(DATA, 16_384)


def open_descriptors(root: Path) -> int:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.islink(link) and os.readlink(link).startswith(f"{root}/partial/node/") for link in links)


def test_read_gives_chunks_on_record_only(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.partial(DOMAIN, FILE) is None
        put(store, DATA, FILE, 1)
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        assert partial.present(1)
        assert not partial.present(0)
        assert partial.missing() == [0, 2, 3, 4, 5, 6]
        assert partial.read(1, 20_000, 500) == DATA[20_000:20_500]
        assert partial.read(0, 0, 500) is None
        assert not partial.complete


def test_all_share_one_instance_until_the_file_is_complete(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        assert store.partial(DOMAIN, FILE) is partial
        put_all(store, DATA, FILE)
        assert partial.gone
        assert partial.read(0, 0, 10) is None
        assert store.read(DOMAIN, FILE.digest, FILE.size, 0, 10) == DATA[:10]


def test_reader_at_work_ends_in_peace_when_the_file_becomes_an_object(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        with partial.borrow() as fd:
            assert fd is not None
            put_all(store, DATA, FILE)
            assert os.pread(fd, 10, 0) == DATA[:10]


def test_few_descriptors_stay_open_however_many_files_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials_module, "OPEN_LIMIT", 4)
    with opened(tmp_path) as store:
        held: list[PartialFile] = []
        for seed in range(12):
            data = bytes_of(2_000, seed)
            identity = identity_of(data, 1_000)
            put(store, data, identity, 0)
            partial = store.partial(DOMAIN, identity)
            assert partial is not None
            held.append(partial)
        for seed, partial in enumerate(held):
            assert partial.read(0, 0, 1_000) == bytes_of(2_000, seed)[:1_000]
            assert open_descriptors(tmp_path) <= 4
    assert open_descriptors(tmp_path) == 0


def test_bad_map_file_means_an_empty_partial_file(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
    (map_file,) = (tmp_path / "partial" / DOMAIN).glob("*.map")
    data = bytearray(map_file.read_bytes())
    data[60] ^= 1
    map_file.write_bytes(data)
    with opened(tmp_path) as store:
        assert store.partial(DOMAIN, FILE) is None
        assert store.usage().used == 0
        put_all(store, DATA, FILE)
        assert content(store, FILE) == DATA


def test_data_file_of_another_size_means_an_empty_partial_file(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
    (data_file,) = (tmp_path / "partial" / DOMAIN).glob("*.data")
    os.truncate(data_file, 10)
    with opened(tmp_path) as store:
        assert store.partial(DOMAIN, FILE) is None


def test_chunk_that_the_disk_cut_off_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        put(store, DATA, FILE, 6)
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        (data_file,) = (tmp_path / "partial" / DOMAIN).glob("*.data")
        os.truncate(data_file, 50_000)
        offset, size, _ = FILE.chunks[6]
        assert partial.read(6, offset, size) is None
        assert not partial.present(6)
        assert partial.present(0)


def test_data_file_that_vanished_means_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        partial.close_idle()
        (data_file,) = (tmp_path / "partial" / DOMAIN).glob("*.data")
        data_file.unlink()
        assert partial.read(0, 0, 10) is None
        put_all(store, DATA, FILE)
        assert content(store, FILE) == DATA


def test_file_filled_in_order_is_not_read_again_at_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for ordinal in range(6):
            put(store, DATA, FILE, ordinal)
            partial = store.partial(DOMAIN, FILE)
            assert partial is not None
            assert partial.unhashed == FILE.size - FILE.chunks[ordinal + 1][0]


def test_writer_that_outlives_a_removal_starts_the_file_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        with store.writer(DOMAIN, FILE, 1) as writer:
            writer.write(part(DATA, FILE, 1))
            store.remove(DOMAIN, FILE.digest)
            writer.commit()
        partial = store.partial(DOMAIN, FILE)
        assert partial is not None
        assert partial.missing() == [0, 2, 3, 4, 5, 6]


def test_threads_racing_for_all_chunks_make_one_object(tmp_path: Path) -> None:
    count = len(FILE.chunks)

    def race(store: ObjectStore, turn: int) -> None:
        for step in range(count):
            put(store, DATA, FILE, (step + turn) % count)

    with opened(tmp_path) as store, ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            for future in [pool.submit(race, store, turn) for turn in range(6)]:
                future.result()
            assert content(store, FILE) == DATA
            assert store.usage().domains[DOMAIN].objects == 1
            assert list((tmp_path / "partial" / DOMAIN).iterdir()) == []
            store.remove(DOMAIN, FILE.digest)
        assert store.usage().used == 0


def test_readers_never_see_wrong_bytes_while_others_write_sync_and_remove(tmp_path: Path) -> None:
    files = [(data, identity_of(data)) for data in (bytes_of(3_000, seed) for seed in range(8))] + [(DATA, FILE)]
    stop = threading.Event()

    def read(store: ObjectStore) -> None:
        while not stop.is_set():
            for data, identity in files:
                assert content(store, identity) in (None, data)
                partial = store.partial(DOMAIN, identity)
                if partial is not None:
                    for ordinal, (offset, size, _) in enumerate(identity.chunks):
                        assert partial.read(ordinal, offset, size) in (None, part(data, identity, ordinal))

    def remove(store: ObjectStore) -> None:
        while not stop.is_set():
            for _, identity in files:
                store.evict([(DOMAIN, identity.digest, identity.size)], 1)
            store.usage()

    def sync(store: ObjectStore) -> None:
        while not stop.is_set():
            store.sync()

    with opened(tmp_path) as store:
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(work, store) for work in (read, read, remove, sync)]
            try:
                for _ in range(30):
                    for data, identity in files:
                        put_all(store, data, identity)
            finally:
                stop.set()
            for future in others:
                future.result()
        before = store.usage()
    with opened(tmp_path) as store:
        assert store.usage() == before
