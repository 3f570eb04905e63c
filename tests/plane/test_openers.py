"""Who opened a file last, within bounds."""

import pytest

from snapshotter.plane.fuse import openers as module
from snapshotter.plane.fuse.openers import THREADS_KEPT, Openers


def test_a_file_is_remembered_as_long_as_somebody_has_it_open() -> None:
    openers = Openers()
    for thread in (10, 11):
        openers.opened(5, thread)
    openers.opened(6, 12)
    assert openers.all() == {5: (10, 11), 6: (12,)}
    openers.released(5)
    openers.released(6)
    assert openers.all() == {5: (10, 11)}
    openers.released(5)
    openers.released(5)
    assert openers.all() == {}


def test_only_the_last_threads_of_a_file_and_the_last_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INODES_KEPT", 3)
    openers = Openers()
    for thread in range(100):
        openers.opened(1, thread)
    assert openers.all() == {1: tuple(range(100 - THREADS_KEPT, 100))}
    for inode in (2, 3, 1, 4):
        openers.opened(inode, 7)
    assert set(openers.all()) == {3, 1, 4}
