import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.store.handles import HandleCache, Key


class Files:
    """Descriptors of small files, and what the cache said of deleted ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = 0
        self.cache = HandleCache(3, self.deleted)

    def deleted(self, size: int) -> None:
        self.held += size

    def add(self, number: int) -> tuple[Key, int]:
        path = self.folder / str(number)
        path.write_text(str(number))
        fd = os.open(path, os.O_RDONLY)
        key = ("node", bytes([number]))
        handle = self.cache.add(key, fd, os.fstat(fd))
        handle.release()
        return key, fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    files.cache.close()


def test_least_recently_used_is_closed(files: Files) -> None:
    opened = [files.add(number) for number in range(3)]
    first = files.cache.get(opened[0][0])
    assert first is not None
    first.release()
    files.add(3)
    assert [is_open(fd) for _, fd in opened] == [True, False, True]
    assert files.cache.get(opened[1][0]) is None


def test_handle_in_use_is_closed_by_its_last_release_only(files: Files) -> None:
    key, fd = files.add(0)
    uses = [files.cache.get(key) for _ in range(2)]
    for number in range(1, 4):
        files.add(number)
    assert files.cache.get(key) is None
    for use in uses:
        assert is_open(fd)
        assert use is not None
        use.release()
    assert not is_open(fd)


def test_dropped_handle_counts_as_deleted_while_in_use(files: Files) -> None:
    key, fd = files.add(0)
    handle = files.cache.get(key)
    assert handle is not None
    with handle:
        files.cache.drop(key)
        assert files.held > 0
        assert is_open(fd)
    assert files.held == 0
    assert not is_open(fd)
    files.cache.drop(key)


def test_second_descriptor_of_one_object_is_closed(files: Files) -> None:
    key, fd = files.add(0)
    _, other = files.add(0)
    assert is_open(fd)
    assert not is_open(other)
    handle = files.cache.get(key)
    assert handle is not None
    assert handle.fd == fd
    handle.release()


def test_close_lets_users_finish(files: Files) -> None:
    key, fd = files.add(0)
    handle = files.cache.get(key)
    assert handle is not None
    _, idle = files.add(1)
    files.cache.close()
    assert is_open(fd)
    assert not is_open(idle)
    handle.release()
    assert not is_open(fd)
