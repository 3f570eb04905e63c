"""Whose a sample container is: a mark says it, and only a process that is gone for certain counts as gone."""

import os
import subprocess
from pathlib import Path

import pytest

from snapshotter.image.optimize import abandoned
from snapshotter.image.optimize.abandoned import is_gone, own_mark


def changed(number: int, word: str) -> str:
    """Our own mark with another word at a place."""
    words = own_mark().split(" ")
    words[number] = word
    return " ".join(words)


def test_process_that_lives_is_not_gone() -> None:
    assert not is_gone(own_mark())


def test_process_of_another_boot_is_gone_and_one_that_cannot_be_seen_is_not() -> None:
    assert is_gone(changed(0, "00000000-0000-0000-0000-000000000000"))
    assert not is_gone(changed(1, "pid:[1]"))


def test_id_that_another_process_has_now_does_not_hide_that_the_first_is_gone() -> None:
    assert is_gone(changed(3, "1"))
    process = subprocess.Popen(["true"])
    process.wait()
    assert is_gone(changed(2, str(process.pid)))


@pytest.mark.parametrize("mark", ["", "x", "a b c d", "a b 3", f"{os.getpid()}"])
def test_mark_that_is_none_is_left_alone(mark: str) -> None:
    assert not is_gone(mark)


def test_directory_is_deleted_only_if_it_can_be_one_of_ours(tmp_path: Path) -> None:
    ours, other, aim = tmp_path / "optimize-1", tmp_path / "other", tmp_path / "aim"
    for folder in (ours, other, aim):
        folder.mkdir()
    link = tmp_path / "optimize-2"
    link.symlink_to(aim)
    for path in (ours, other, link, Path("optimize-3")):
        abandoned._remove_directory({abandoned.DIRECTORY: str(path)})
    abandoned._remove_directory({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aim", "optimize-2", "other"]
