"""Digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.digest import from_raw, parse_digest, raw


@given(st.binary(min_size=32, max_size=32))
def test_raw_and_text_form_are_inverse(value: bytes) -> None:
    assert raw(parse_digest(from_raw(value))) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha512:" + "0" * 128,
        "0" * 64,
    ],
)
def test_anything_but_lowercase_sha256_is_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        parse_digest(text)


def test_raw_digest_of_another_length_is_format_error() -> None:
    with pytest.raises(FormatError):
        from_raw(b"short")
