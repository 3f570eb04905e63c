import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from snapshotter.errors import StoreError, StoreFull
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.objects import ObjectStore
from tests.store.content import DOMAIN, NO_LIMITS, bytes_of, content, du, identity_of, killed, object_path, opened, put

DATA, OTHER = bytes_of(10_000), bytes_of(9_000, 1)
FILE, OTHER_FILE = identity_of(DATA), identity_of(OTHER)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def timed(root: Path) -> Iterator[tuple[ObjectStore, Clock]]:
    """A store whose late links go by a clock of the test's."""
    clock = Clock()
    root.mkdir(exist_ok=True)
    store = ObjectStore(root, CacheDB(root / "cache.db", "boot 1"), NO_LIMITS, clock=clock)
    try:
        yield store, clock
    finally:
        store.close()


def late(root: Path, digest: bytes = FILE.digest, domain: str = DOMAIN) -> Path:
    return object_path(root, digest, domain, top="late")


def names(root: Path) -> list[str]:
    return sorted(name for _, _, files in os.walk(root / "late") for name in files)


def link(store: ObjectStore, domain: str = DOMAIN) -> bool:
    return store.link_late(domain, FILE.digest, FILE.size)


def test_object_gets_a_second_name(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        assert link(store)
        assert link(store)
        assert late(tmp_path).stat().st_ino == object_path(tmp_path, FILE.digest).stat().st_ino
        assert late(tmp_path) == tmp_path / "late" / store.place / DOMAIN / FILE.digest.hex()[:2] / FILE.digest.hex()
        for folder in (tmp_path / "late", *late(tmp_path).relative_to(tmp_path / "late").parents):
            assert stat.S_IMODE((tmp_path / "late" / folder).stat().st_mode) == 0o700


def test_what_is_no_object_of_that_size_gets_no_name(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert not link(store)
        put(store, DATA, FILE, 0)
        assert not store.link_late(DOMAIN, FILE.digest, FILE.size + 1)
        assert not link(store, "other")
        assert names(tmp_path) == []


def test_names_go_when_their_last_link_is_long_ago(tmp_path: Path) -> None:
    with timed(tmp_path) as (store, clock):
        put(store, DATA, FILE, 0)
        put(store, OTHER, OTHER_FILE, 0)
        link(store)
        clock.now += 4
        store.link_late(DOMAIN, OTHER_FILE.digest, OTHER_FILE.size)
        store.sweep_late(5)
        assert len(names(tmp_path)) == 2
        clock.now += 2
        link(store)  # extends its life: the other is now the oldest
        clock.now += 4
        store.sweep_late(5)
        assert names(tmp_path) == [FILE.digest.hex()]
        clock.now += 1
        store.sweep_late(5)
        assert names(tmp_path) == []
        assert content(store, FILE) == DATA
        assert link(store)


def test_sweep_touches_only_what_it_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(real.__name__)
            return real(*arguments, **named)

        return call

    with timed(tmp_path) as (store, clock):
        for seed in range(100):
            data = bytes_of(10, seed)
            put(store, data, identity_of(data), 0)
            store.link_late(DOMAIN, identity_of(data).digest, 10)
            clock.now += 1
        with monkeypatch.context() as patch:
            for name in ("open", "unlink", "stat", "scandir", "listdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            store.sweep_late(98)
        assert len(names(tmp_path)) == 97
    assert calls == ["open", "unlink"] * 3


def test_name_outlives_its_object_until_the_sweep(tmp_path: Path) -> None:
    with timed(tmp_path) as (store, _):
        put(store, DATA, FILE, 0)
        put(store, OTHER, OTHER_FILE, 0)
        used = store.usage().used
        link(store)
        assert store.usage().used == used == du(tmp_path)
        freed = store.remove(DOMAIN, FILE.digest)
        assert late(tmp_path).read_bytes() == DATA
        assert not link(store)
        assert store.usage().used == used - freed
        assert freed > 0
        assert du(tmp_path) == used
        store.sweep_late(0)
        assert store.usage().used == used - freed == du(tmp_path)
        # The names of all times are swept.
        assert names(tmp_path) == []


def test_eviction_does_not_touch_names(tmp_path: Path) -> None:
    with timed(tmp_path) as (store, _):
        put(store, DATA, FILE, 0)
        link(store)
        assert store.evict([(DOMAIN, FILE.digest, FILE.size)], 1).objects == 1
        assert late(tmp_path).read_bytes() == DATA


def test_count_is_right_with_names_there_and_with_two_domains(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for domain in ("a", "b"):
            put(store, DATA, FILE, 0, domain)
            link(store, domain)
        put(store, OTHER, OTHER_FILE, 0, "a")
        store.link_late("a", OTHER_FILE.digest, OTHER_FILE.size)
        assert late(tmp_path, domain="a").stat().st_nlink == 4
        store._tally.recount(store._placement.scan, again=True)
        assert store.usage().used == du(tmp_path)
        assert store.usage().domains["b"].objects == 1
        assert store.remove("a", FILE.digest) == 0
        assert store.remove("a", OTHER_FILE.digest) > 0
        store.sweep_late(0)
        assert store.usage().used == du(tmp_path) > 0
        assert store.remove("b", FILE.digest) > 0
        assert store.usage().used == du(tmp_path) == 0


def test_name_of_another_file_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        link(store)
        os.truncate(object_path(tmp_path, FILE.digest), 10)
        assert content(store, FILE) is None
        assert late(tmp_path).stat().st_size == 10
        put(store, DATA, FILE, 0)
        assert link(store)
        assert late(tmp_path).read_bytes() == DATA
        assert names(tmp_path) == [FILE.digest.hex()]
        store.sweep_late(0)
        assert names(tmp_path) == []
        assert store.usage().used == du(tmp_path)


def test_name_is_never_missing_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        link(store)
        store.remove(DOMAIN, FILE.digest)
        put(store, DATA, FILE, 0)
        path = late(tmp_path)
        rename = os.rename

        def replaced(*arguments: Any, **named: Any) -> None:
            assert path.exists()
            rename(*arguments, **named)
            assert path.exists()

        monkeypatch.setattr(os, "rename", replaced)
        assert link(store)
        monkeypatch.undo()
        assert path.stat().st_ino == object_path(tmp_path, FILE.digest).stat().st_ino


def test_failed_replacement_leaves_nothing_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        link(store)
        store.remove(DOMAIN, FILE.digest)
        put(store, DATA, FILE, 0)

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refused)
            with pytest.raises(StoreError):
                link(store)
        assert names(tmp_path) == [FILE.digest.hex()]


def test_planted_files_and_symlinks_are_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("outside")
    root = tmp_path / "root"
    with opened(root) as store:
        put(store, DATA, FILE, 0)
        path = late(root)
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(FILE.size))
        assert link(store)
        assert path.read_bytes() == DATA
        path.unlink()
        path.symlink_to(outside)
        assert link(store)
        assert path.read_bytes() == DATA
        assert outside.read_text() == "outside"


def test_planted_symlink_in_place_of_a_shard_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    with opened(root) as store:
        put(store, DATA, FILE, 0)
        folder = late(root).parent
        folder.parent.mkdir(parents=True)
        folder.symlink_to(outside)
        with pytest.raises(StoreError):
            link(store)
        assert os.listdir(outside) == []


@pytest.mark.parametrize(("code", "raised"), [(errno.EMLINK, StoreError), (errno.ENOSPC, StoreFull)])
def test_link_that_the_disk_refuses_is_an_error_and_hurts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: type[StoreError]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", refused)
            with pytest.raises(raised, match=os.strerror(code)):
                link(store)
        store.sweep_late(0)
        assert content(store, FILE) == DATA
        assert link(store)


def test_name_that_the_disk_does_not_remove_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with timed(tmp_path) as (store, clock):
        put(store, DATA, FILE, 0)
        put(store, OTHER, OTHER_FILE, 0)
        link(store)
        store.link_late(DOMAIN, OTHER_FILE.digest, OTHER_FILE.size)
        clock.now += 10
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refused)
            with pytest.raises(StoreError):
                store.sweep_late(5)
        store.sweep_late(5)
        assert names(tmp_path) == [FILE.digest.hex()]
        clock.now += 10
        store.sweep_late(5)
        assert names(tmp_path) == []


def test_names_of_the_process_before_go_with_the_first_sweep_in_the_same_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    root = tmp_path / "root"
    with opened(root) as store:
        put(store, DATA, FILE, 0)
        link(store)
        store.remove(DOMAIN, FILE.digest)
    folder = root / "late"
    inode = folder.stat().st_ino
    folder.chmod(0o755)
    (folder / "symlink").symlink_to(outside)
    (folder / "file").write_text("left")
    (next(folder.glob("_*")) / "inner").symlink_to(outside)
    with timed(root) as (store, clock):
        store.sweep_late(5)
        assert late(root).read_bytes() == DATA
        assert (folder.stat().st_ino, stat.S_IMODE(folder.stat().st_mode)) == (inode, 0o700)
        clock.now += 6
        store.sweep_late(5)
        assert os.listdir(folder) == [store.place]
        assert names(root) == []
        assert store.usage().used == du(root) == 0
    assert os.listdir(outside) == ["file"]


def test_name_of_the_process_before_that_is_linked_again_stays(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with opened(root) as store:
        put(store, DATA, FILE, 0)
        put(store, OTHER, OTHER_FILE, 0)
        link(store)
        store.link_late(DOMAIN, OTHER_FILE.digest, OTHER_FILE.size)
    with timed(root) as (store, clock):
        clock.now += 6
        link(store)
        store.sweep_late(5)
        assert names(root) == [FILE.digest.hex()]


def test_after_a_power_loss_no_name_is_left_for_a_moment(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with killed(root) as store:
        put(store, DATA, FILE, 0)
        link(store)
    with opened(root, boot="boot 2"):
        assert names(root) == []


def test_object_removed_while_it_is_opened_is_not_kept_open_for_its_late_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        put(store, DATA, FILE, 0)
        link(store)
        add = store._handles.add

        def removed_first(*arguments: Any) -> Any:
            store.remove(DOMAIN, FILE.digest)
            return add(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(store._handles, "add", removed_first)
            handle = store.acquire(DOMAIN, FILE.digest, FILE.size)
        assert handle is not None
        assert os.pread(handle.fd, FILE.size, 0) == DATA
        handle.release()
        assert store.acquire(DOMAIN, FILE.digest, FILE.size) is None


def test_names_are_right_whatever_threads_do(tmp_path: Path) -> None:
    files = [(data := bytes_of(2000, seed), identity_of(data)) for seed in range(5)]

    def work(store: ObjectStore, seed: int) -> None:
        random = Random(seed)
        for _ in range(150):
            data, identity = random.choice(files)
            match random.randrange(4):
                case 0:
                    store.remove(DOMAIN, identity.digest)
                case 1:
                    store.sweep_late(0)
                case _:
                    put(store, data, identity, 0)
                    store.link_late(DOMAIN, identity.digest, identity.size)
                    store.read(DOMAIN, identity.digest, identity.size, 0, 10)

    with opened(tmp_path) as store:
        threads = [threading.Thread(target=work, args=(store, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _, identity in files:
            if store.link_late(DOMAIN, identity.digest, identity.size):
                inodes = [object_path(tmp_path, identity.digest, top=top).stat().st_ino for top in ("objects", "late")]
                assert inodes[0] == inodes[1]
        store.sweep_late(0)
        assert names(tmp_path) == []
        assert store.usage().used == du(tmp_path)
