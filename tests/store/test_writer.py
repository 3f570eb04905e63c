import stat
from pathlib import Path

import pytest

from snapshotter.errors import FormatError, IntegrityError
from snapshotter.store.identity import StoredIdentity
from tests.store.content import (
    DOMAIN,
    bytes_of,
    content,
    identity_of,
    object_path,
    opened,
    part,
    put,
    put_all,
    sha256,
    without_digests,
)

DATA = bytes_of(10_000)
FILE = identity_of(DATA)
LARGE = bytes_of(100_000, 1)
LARGE_FILE = identity_of(LARGE, 16_384)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for top in ("objects", "partial") for path in (root / top).rglob("*.*"))


def test_pieces_of_any_size_and_kind_make_the_file(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with store.writer(DOMAIN, FILE, 0) as writer:
            buffer = bytearray(1000)
            for offset in range(0, FILE.size, 1000):
                buffer[:] = DATA[offset : offset + 1000]
                writer.write(memoryview(buffer))
            writer.commit()
        assert content(store, FILE) == DATA


def test_file_larger_than_memory_limit_is_written_aside(tmp_path: Path) -> None:
    data = bytes_of(5 << 20)
    identity = identity_of(data)
    with opened(tmp_path) as store:
        with store.writer(DOMAIN, identity, 0) as writer:
            for offset in range(0, len(data), 1 << 20):
                writer.write(data[offset : offset + (1 << 20)])
            assert len(names(tmp_path)) == 1
            assert not store.has(DOMAIN, identity.digest, identity.size)
            writer.commit()
        assert content(store, identity) == data
        assert names(tmp_path) == []


def test_chunk_larger_than_memory_limit_reaches_its_place(tmp_path: Path) -> None:
    data = bytes_of(11 << 20)
    identity = identity_of(data, 5 << 20)
    with opened(tmp_path) as store:
        put(store, data, identity, 1)
        partial = store.partial(DOMAIN, identity)
        assert partial is not None
        assert partial.read(1, 5 << 20, 5 << 20) == part(data, identity, 1)
        put(store, data, identity, 0)
        put(store, data, identity, 2)
        assert content(store, identity) == data


@pytest.mark.parametrize("identity", [FILE, LARGE_FILE], ids=["whole", "chunk"])
def test_wrong_bytes_are_an_integrity_error_and_leave_nothing(tmp_path: Path, identity: StoredIdentity) -> None:
    with opened(tmp_path) as store:
        with store.writer(DOMAIN, identity, 0) as writer:
            writer.write(bytes(identity.chunks[0][1]))
            with pytest.raises(IntegrityError, match=identity.digest.hex()):
                writer.commit()
        assert names(tmp_path) == []
        assert store.usage().used == 0


@pytest.mark.parametrize("identity", [FILE, LARGE_FILE], ids=["whole", "chunk"])
@pytest.mark.parametrize("extra", [-1, 1])
def test_wrong_length_is_a_format_error(tmp_path: Path, identity: StoredIdentity, extra: int) -> None:
    with opened(tmp_path) as store, store.writer(DOMAIN, identity, 0) as writer:
        with pytest.raises(FormatError, match="bytes"):
            writer.write(bytes(identity.chunks[0][1] + extra))
            writer.commit()
        assert store.partial(DOMAIN, identity) is None


def test_writer_takes_nothing_after_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        writer = store.writer(DOMAIN, FILE, 0)
        writer.abort()
        with pytest.raises(FormatError):
            writer.write(DATA)
        with pytest.raises(FormatError):
            writer.commit()


def test_single_chunk_with_good_chunk_digest_but_other_file_digest_is_refused(tmp_path: Path) -> None:
    lie = FILE._replace(digest=sha256(b"something else"))
    with opened(tmp_path) as store:
        with pytest.raises(IntegrityError):
            put(store, DATA, lie, 0)
        assert not store.has(DOMAIN, lie.digest, lie.size)


def test_single_file_without_chunk_digest_is_checked_by_its_own(tmp_path: Path) -> None:
    bare = FILE._replace(chunks=((0, FILE.size, b""),))
    with opened(tmp_path) as store:
        with pytest.raises(IntegrityError):
            put(store, bytes_of(FILE.size, 9), bare, 0)
        put(store, DATA, bare, 0)
        assert content(store, bare) == DATA


def test_unverified_file_is_only_measured(tmp_path: Path) -> None:
    bare, large = without_digests(FILE, b"entry"), without_digests(LARGE_FILE, b"large entry")
    with opened(tmp_path) as store:
        put(store, DATA, bare, 0)
        put_all(store, LARGE, large)
        assert content(store, bare) == DATA
        assert content(store, large) == LARGE


def test_large_file_in_order_becomes_an_object(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put_all(store, LARGE, LARGE_FILE)
        assert content(store, LARGE_FILE) == LARGE
        assert store.partial(DOMAIN, LARGE_FILE) is None
        assert names(tmp_path) == []
        assert stat.S_IMODE(object_path(tmp_path, LARGE_FILE.digest).stat().st_mode) == 0o400


def test_whole_file_check_with_much_to_read_is_left_to_finish(tmp_path: Path) -> None:
    data = bytes_of(40 << 20)
    identity = identity_of(data, 4 << 20)
    with opened(tmp_path) as store:
        answers = [put(store, data, identity, ordinal) for ordinal in reversed(range(10))]
        assert answers == [False] * 9 + [True]
        assert not store.has(DOMAIN, identity.digest, identity.size)
        assert store.finish(DOMAIN, identity)
        assert store.finish(DOMAIN, identity)
        assert content(store, identity) == data


def test_whole_file_mismatch_never_becomes_an_object_and_is_remembered(tmp_path: Path) -> None:
    lie = LARGE_FILE._replace(digest=sha256(b"something else"))
    with opened(tmp_path) as store:
        put_all(store, LARGE, lie)
        assert not store.has(DOMAIN, lie.digest, lie.size)
        assert store.counters.mismatches == 1
    with opened(tmp_path) as store:
        partial = store.partial(DOMAIN, lie)
        assert partial is not None
        assert partial.mismatch
        assert partial.complete
        assert partial.read(1, 16_384, 100) == LARGE[16_384:16_484]
        assert not store.finish(DOMAIN, lie)
        assert store.counters.mismatches == 0


def test_files_of_one_digest_with_other_chunks_share_nothing_before_they_are_objects(tmp_path: Path) -> None:
    other = identity_of(LARGE, 8_192)
    poisoned = LARGE_FILE._replace(chunks=((0, 16_384, sha256(bytes(16_384))), *LARGE_FILE.chunks[1:]))
    with opened(tmp_path) as store:
        with store.writer(DOMAIN, poisoned, 0) as writer:
            writer.write(bytes(16_384))
            writer.commit()
        assert store.partial(DOMAIN, LARGE_FILE) is None
        assert store.partial(DOMAIN, other) is None
        put(store, LARGE, other, 0)
        put_all(store, LARGE, LARGE_FILE)
        assert content(store, LARGE_FILE) == LARGE
        for ordinal in range(1, len(poisoned.chunks)):
            put(store, LARGE, poisoned, ordinal)
        assert content(store, poisoned) == LARGE


def test_zeros_are_holes(tmp_path: Path) -> None:
    data = LARGE[:16_384] + bytes(1 << 20) + LARGE[16_384:20_000]
    chunks = (
        (0, 16_384, sha256(data[:16_384])),
        (16_384, 1 << 20, sha256(bytes(1 << 20))),
        (16_384 + (1 << 20), 3_616, b""),
    )
    identity = StoredIdentity(sha256(data), len(data), chunks, derived=False)
    with opened(tmp_path) as store:
        store.mark_zeros(DOMAIN, identity, 1)
        put(store, data, identity, 0)
        put(store, data, identity, 2)
        assert content(store, identity) == data
        assert object_path(tmp_path, identity.digest).stat().st_blocks * 512 < 100_000


def test_file_of_zeros_alone_is_an_object_without_blocks(tmp_path: Path) -> None:
    identity = identity_of(bytes(1 << 20))
    with opened(tmp_path) as store:
        store.mark_zeros(DOMAIN, identity, 0)
        assert content(store, identity) == bytes(1 << 20)


def test_zeros_that_a_digest_denies_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for identity in (FILE, LARGE_FILE, FILE._replace(chunks=((0, FILE.size, b""),))):
            with pytest.raises(IntegrityError):
                store.mark_zeros(DOMAIN, identity, 0)
        assert names(tmp_path) == []
