"""Small things about sample runs; the runs themselves are in integration/test_optimize.py."""

import signal

import pytest

from snapshotter.image.optimize.sampling import Watching, new_name, signal_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("term", signal.SIGTERM),
        ("15", signal.SIGTERM),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("", signal.SIGKILL),
        ("0", signal.SIGKILL),
        ("1000", signal.SIGKILL),
        ("SIGNOTHING", signal.SIGKILL),
        ("SIGRTMAX+1", signal.SIGKILL),
        ("SIG_IGN", signal.SIGKILL),
        ("SIGTERM+1", signal.SIGKILL),
        ("١٥", signal.SIGKILL),
        ("NAL", signal.SIGKILL),
    ],
)
def test_signal_is_the_one_that_an_image_names_or_the_last_resort(text: str, number: int) -> None:
    assert signal_number(text) == number


def test_watching_says_what_ends_it() -> None:
    assert str(Watching(10.0, "", until_signal=False)) == "until it ends, or for 10 s at most"
    assert (
        str(Watching(2.5, "up", until_signal=False)) == "until it ends, or until a line has 'up', or for 2.5 s at most"
    )
    assert str(Watching(None, "", until_signal=True)) == "until it ends, or until Ctrl-C"


def test_names_are_all_different() -> None:
    assert len({new_name() for _ in range(100)}) == 100
