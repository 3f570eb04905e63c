"""Symbolic links planted in root, where the store makes files and directories: none is followed to write or to delete."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snapshotter.config import CacheConfig
from snapshotter.errors import SnapshotterError, StoreError
from snapshotter.store import full_disk
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.full_disk import open_with_room
from snapshotter.store.lock import RootLock
from snapshotter.store.objects import ObjectStore
from snapshotter.store.real_directory import real_directory
from snapshotter.store.state import State
from tests.doubles.outside import Outside
from tests.store.content import identity_of, put

DATA = b"some content" * 500
CHUNK = 2000
LARGE = identity_of(DATA, CHUNK)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """What must stay as it is."""
    made = Outside(tmp_path)
    yield made
    made.check()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory."""
    path = tmp_path / "root"
    path.mkdir(mode=0o700)
    return path


def test_directory_is_made_or_taken_and_a_link_in_its_place_is_refused(root: Path, outside: Outside) -> None:
    for _ in range(2):
        real_directory(root / "a" / "b", parents=True)
    assert (root / "a" / "b").stat().st_mode & 0o777 == 0o700
    (root / "link").symlink_to(outside.directory)
    (root / "dangling").symlink_to(outside.missing)
    (root / "file").write_text("")
    for name, words in (("link", "a symbolic link"), ("dangling", "a symbolic link"), ("file", "something else")):
        with pytest.raises(NotADirectoryError, match=words):
            real_directory(root / name)


@pytest.mark.parametrize("existing", [True, False])
def test_lock_is_not_written_through_a_link(root: Path, outside: Outside, existing: bool) -> None:
    (root / "lock").symlink_to(outside.file if existing else outside.missing)
    with pytest.raises(StoreError, match="root"):
        RootLock(root)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_databases_are_not_written_through_links(root: Path, outside: Outside, suffix: str, existing: bool) -> None:
    for name in ("state.db", "cache.db"):
        (root / f"{name}{suffix}").symlink_to(outside.file if existing else outside.missing)
    # It may say so, or put the link aside.
    with suppress(SnapshotterError):
        State(root / "state.db").close()
    with suppress(SnapshotterError):
        CacheDB(root / "cache.db").close()


def store(root: Path) -> ObjectStore:
    return ObjectStore(root, CacheDB(root / "cache.db"), CacheConfig(min_free=0))


@pytest.mark.parametrize("name", ["objects", "late", "partial", "unproven"])
def test_store_refuses_a_link_in_place_of_a_directory(root: Path, outside: Outside, name: str) -> None:
    (root / name).symlink_to(outside.directory)
    with pytest.raises(StoreError):
        store(root)


@pytest.mark.parametrize("name", ["partial/node", "unproven/node", "late/node"])
def test_links_in_place_of_domains_are_not_followed(root: Path, outside: Outside, name: str) -> None:
    (root / name).parent.mkdir()
    (root / name).symlink_to(outside.directory / "node")
    opened = store(root)
    try:
        with suppress(SnapshotterError):
            put(opened, DATA, identity_of(DATA, CHUNK), 0)
        with suppress(SnapshotterError):
            put(opened, DATA[:100], identity_of(DATA[:100]), 0)
        opened.usage()
    finally:
        opened.close()


@pytest.mark.parametrize("existing", [True, False])
def test_links_among_partial_files_are_not_followed(root: Path, outside: Outside, existing: bool) -> None:
    opened = store(root)
    try:
        put(opened, DATA, LARGE, 0)
    finally:
        opened.close()
    target = outside.file if existing else outside.missing
    left = sorted((root / "partial" / "node").iterdir())
    assert [path.suffix for path in left] == [".data", ".map"]
    for path in left:
        path.unlink()
        path.symlink_to(target)
    for number in range(3):
        (root / "partial" / "node" / f"{number}.tmp").symlink_to(target)
    (root / "partial" / "node" / f"{left[1].name}.tmp").symlink_to(target)
    opened = store(root)
    try:
        for ordinal in range(len(LARGE.chunks)):
            with suppress(SnapshotterError):
                put(opened, DATA, LARGE, ordinal)
    finally:
        opened.close()


def test_link_in_place_of_an_object_is_no_object(root: Path, outside: Outside) -> None:
    identity = identity_of(DATA[:100])
    opened = store(root)
    shard = root / "objects" / opened.place / "node" / identity.digest.hex()[:2]
    try:
        put(opened, b"1" * 100, identity_of(b"1" * 100), 0)
        shard.mkdir(parents=True, exist_ok=True)
        (shard / identity.digest.hex()).symlink_to(outside.file)
        assert not opened.has("node", identity.digest, 100)
        put(opened, DATA[:100], identity, 0)
        assert not (shard / identity.digest.hex()).is_symlink()
        assert opened.read("node", identity.digest, 100, 0, 100) == DATA[:100]
    finally:
        opened.close()


@pytest.mark.parametrize("existing", [True, False])
def test_note_of_a_full_disk_is_not_made_through_a_link(
    root: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    monkeypatch.setattr(full_disk, "_free", lambda _: 0)
    (root / "made-room").symlink_to(outside.file if existing else outside.missing)
    (root / "late").symlink_to(outside.directory)
    (root / "objects").mkdir()
    (root / "objects" / "link").symlink_to(outside.directory)
    (root / "objects" / "file").write_bytes(bytes(5000))
    tries = iter((StoreError("full"), None))

    def opening() -> None:
        if (error := next(tries)) is not None:
            raise error

    open_with_room(root, opening)
    assert os.listdir(root / "objects") == ["link"]
