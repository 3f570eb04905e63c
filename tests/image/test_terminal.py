"""What a program leaves of a terminal."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.image.optimize.terminal import Screen


@pytest.mark.parametrize(
    ("shown", "back"),
    [
        (b"plain words \x1b[1mbold\n", b""),
        (b"\x1b[?1049h\x1b[?25lfull", b"\x1b[?1049l\x1b[?25h\x1b[0m"),
        (b"\x1b[?1049hfull\x1b[?1049l", b""),
        (b"\x1b[?1049;25hfull\x1b[?25l\x1b[?25h", b"\x1b[?1049l\x1b[0m"),
        (b"\x1b[?1000;1006h", b"\x1b[?1000l\x1b[?1006l\x1b[0m"),
        (b"\x1b[?7l\x1b[?h\x1b[?;h", b""),
    ],
)
def test_screen_is_put_back_where_a_program_has_not(shown: bytes, back: bytes) -> None:
    screen = Screen()
    screen.feed(shown)
    assert screen.put_back() == back
    assert screen.put_back() == b""


@given(st.lists(st.sampled_from([b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?1049l", b"words"])), st.data())
def test_screen_is_known_however_the_output_is_cut(pieces: Sequence[bytes], data: st.DataObject) -> None:
    whole, cut = Screen(), Screen()
    shown = b"".join(pieces)
    whole.feed(shown)
    at = data.draw(st.integers(0, len(shown)))
    cut.feed(shown[:at])
    cut.feed(shown[at:])
    assert cut.put_back() == whole.put_back()
