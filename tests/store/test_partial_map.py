import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.store.identity import encode_identity, partial_name
from snapshotter.store.partial_map import RECORD_SIZE, Record, boot_tag, header, parse_map, record
from tests.store.content import bytes_of, identity_of

IDENTITY = identity_of(bytes_of(100), 10)
NAME = partial_name(encode_identity(IDENTITY))
HEADER = header(encode_identity(IDENTITY))
ONE, TWO = boot_tag("one"), boot_tag("two")


def map_of(*records: tuple[Record, int]) -> bytes:
    data = HEADER
    for kind, value in records:
        data += record(kind, value, len(data))
    return data


def at(count: int) -> int:
    """Where record number `count` begins."""
    return len(HEADER) + count * RECORD_SIZE


FULL = map_of(
    (Record.SESSION, ONE), (Record.PRESENT, 3), (Record.PRESENT, 7), (Record.SYNCED, at(2)), (Record.MISMATCH, 0)
)


def test_empty_map_has_nothing() -> None:
    state = parse_map(HEADER, NAME, ONE)
    assert state.identity == IDENTITY
    assert not any(state.present)
    assert (state.end, state.doubtful, state.mismatch, state.session, state.unsynced) == (at(0), [], False, None, False)


def test_records_of_this_boot_are_trusted() -> None:
    state = parse_map(FULL, NAME, ONE)
    assert [ordinal for ordinal, present in enumerate(state.present) if present] == [3, 7]
    assert (state.doubtful, state.mismatch, state.unsynced) == ([], True, True)


def test_after_another_boot_only_what_a_sync_covered_is_trusted() -> None:
    assert parse_map(FULL, NAME, TWO).doubtful == [7]
    again = FULL + record(Record.SESSION, TWO, len(FULL)) + record(Record.PRESENT, 1, len(FULL) + RECORD_SIZE)
    assert parse_map(again, NAME, TWO).doubtful == [7]
    assert parse_map(again, NAME, ONE).doubtful == [1]


@given(st.integers(min_value=0, max_value=len(FULL) - 1))
def test_torn_map_keeps_its_whole_records(length: int) -> None:
    if length < len(HEADER):
        with pytest.raises(FormatError):
            parse_map(FULL[:length], NAME, ONE)
        return
    state = parse_map(FULL[:length], NAME, ONE)
    assert state.end == length - (length - len(HEADER)) % RECORD_SIZE


@given(st.integers(min_value=0, max_value=len(FULL) * 8 - 1))
def test_flipped_bit_never_makes_a_chunk_present(bit: int) -> None:
    data = bytearray(FULL)
    data[bit // 8] ^= 1 << bit % 8
    try:
        state = parse_map(bytes(data), NAME, ONE)
    except FormatError:
        assert bit // 8 < len(HEADER)
        return
    assert {ordinal for ordinal, present in enumerate(state.present) if present} <= {3, 7}


def test_records_of_another_place_or_of_zeros_are_no_records() -> None:
    stray = record(Record.PRESENT, 2, at(5))
    for tail in (stray, bytes(RECORD_SIZE * 4)):
        assert parse_map(HEADER + tail, NAME, ONE).end == at(0)


def test_chunk_beyond_the_file_ends_the_records() -> None:
    assert parse_map(map_of((Record.PRESENT, 10), (Record.PRESENT, 1)), NAME, ONE).end == at(0)


def test_map_of_another_file_is_refused() -> None:
    with pytest.raises(FormatError, match="another file"):
        parse_map(FULL, "00" * 32, ONE)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_map(data, NAME, ONE)
    assert parse_map(HEADER + data, NAME, ONE).end >= at(0)
