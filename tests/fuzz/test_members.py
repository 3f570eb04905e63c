"""Members: compressed bytes of any kind, and those of a sound layer that were changed on the way."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.config import CacheConfig
from snapshotter.errors import FormatError
from snapshotter.format.codec import Codec
from snapshotter.format.limits import PIECE
from snapshotter.format.members import MemberDecoder, inflate
from snapshotter.layer.sink import RangeSink
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.objects import ObjectStore
from tests.fuzz.corpus import BUILT, MEMBERS
from tests.fuzz.mutations import Corpus, mutated
from tests.fuzz.rounds import bounded, fuzzed

LIMIT = 300_000
DIGESTED = [
    (built, built.index(allow_unverified=True)) for built in BUILT if built.index(allow_unverified=True).verified
]


@fuzzed(50)
@given(st.data(), st.sampled_from(Codec), st.integers(1, 5000))
def test_changed_member_gives_pieces_within_bounds_or_format_error(
    data: st.DataObject, codec: Codec, step: int
) -> None:
    packed = data.draw(mutated(Corpus(MEMBERS[codec])))
    with bounded(16 << 20):
        decoder = MemberDecoder(codec)
        size = 0
        try:
            for start in range(0, len(packed), step):
                for piece in decoder.feed(packed[start : start + step]):
                    assert 0 < len(piece) <= PIECE
                    size += len(piece)
                    if size > LIMIT:
                        return
                if decoder.eof:
                    return
        except FormatError:
            return


@fuzzed(50)
@given(st.data(), st.sampled_from(Codec))
def test_changed_member_as_a_whole_is_within_its_limit_or_format_error(data: st.DataObject, codec: Codec) -> None:
    with bounded(16 << 20):
        try:
            assert len(inflate(codec, data.draw(mutated(Corpus(MEMBERS[codec]))), LIMIT)) <= LIMIT
        except FormatError:
            return


@contextmanager
def opened() -> Iterator[ObjectStore]:
    """A store of its own."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    store = ObjectStore(root, CacheDB(root / "cache.db"), CacheConfig(min_free=0))
    try:
        yield store
    finally:
        store.close()
        shutil.rmtree(root)


@st.composite
def changed_payloads(draw: st.DrawFn) -> tuple[int, bytes]:
    """The number of a layer, and other bytes for its members; as many as there were, for an answer has the length that was asked for."""
    number = draw(st.integers(0, len(DIGESTED) - 1))
    built = DIGESTED[number][0]
    size = built.payload_end
    changed = draw(mutated(Corpus([built.blob[:size]]), spare=size))
    return number, changed[:size].ljust(size, b"\0")


@fuzzed(20)
@given(changed_payloads(), st.integers(1, 20_000), st.booleans())
def test_changed_members_never_become_other_content(changed: tuple[int, bytes], step: int, to_memory: bool) -> None:
    number, payload = changed
    index = DIGESTED[number][1]
    start = index.member(0).blob_offset
    with opened() as store:
        sink = RangeSink(index, store, "node", range(index.member_count), to_memory=to_memory)
        landed = [one for at in range(start, len(payload), step) for one in sink.feed(payload[at : at + step])]
        sink.abort()
        assert [one.member for one in landed] == list(range(len(landed)))
        for one in landed:
            for (node, ordinal), plain in one.memory.items():
                chunk = next(c for c in index.chunks(node, 0, 1 << 40) if c.ordinal == ordinal)
                assert hashlib.sha256(plain).digest() == chunk.digest
            for identity in one.whole:
                store.finish("node", identity)
        for kept in store.iterate("node"):
            plain = store.read("node", kept.digest, kept.size, 0, kept.size) or b""
            assert hashlib.sha256(plain).digest() == kept.digest
