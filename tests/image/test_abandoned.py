"""Whose a sample container is: a mark says it, and only a process that is gone for certain counts as gone."""

import os
import subprocess

import pytest

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


@pytest.mark.parametrize(
    "mark", ["", "x", "a b c d", "a b 3", f"{os.getpid()}"], ids=["empty", "word", "four", "no time", "number"]
)
def test_mark_that_is_none_is_left_alone(mark: str) -> None:
    assert not is_gone(mark)
