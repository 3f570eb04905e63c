import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.store.identity import StoredIdentity, decode_identity, encode_identity, partial_name

DIGESTS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)
IDENTITIES = st.builds(
    StoredIdentity,
    DIGESTS,
    NUMBERS,
    st.lists(st.tuples(NUMBERS, NUMBERS, st.one_of(st.just(b""), DIGESTS)), max_size=5).map(tuple),
    st.booleans(),
)


@given(IDENTITIES)
def test_identity_survives_the_way_through_bytes(identity: StoredIdentity) -> None:
    encoded = encode_identity(identity)
    assert decode_identity(encoded + b"more") == (identity, len(encoded))


@given(IDENTITIES, IDENTITIES)
def test_names_are_equal_only_for_equal_identities(one: StoredIdentity, two: StoredIdentity) -> None:
    names = [partial_name(encode_identity(identity)) for identity in (one, two)]
    assert (names[0] == names[1]) == (one == two)


def test_missing_digest_is_not_a_digest_of_zeros() -> None:
    names = {
        partial_name(encode_identity(StoredIdentity(bytes(32), 1, ((0, 1, digest),), derived=False)))
        for digest in (b"", bytes(32))
    }
    assert len(names) == 2


@given(st.binary(max_size=200))
def test_any_bytes_are_an_identity_or_a_format_error(data: bytes) -> None:
    try:
        identity, length = decode_identity(data)
    except FormatError:
        return
    assert len(encode_identity(identity)) == length


@pytest.mark.parametrize(
    "identity",
    [
        StoredIdentity(b"short", 1, (), derived=False),
        StoredIdentity(bytes(32), -1, (), derived=False),
        StoredIdentity(bytes(32), 1, ((0, 1, b"short"),), derived=False),
        StoredIdentity(bytes(32), 1, ((0, 1 << 64, b""),), derived=False),
    ],
)
def test_what_does_not_fit_is_a_format_error(identity: StoredIdentity) -> None:
    with pytest.raises(FormatError):
        encode_identity(identity)
