"""Decompression bombs: what unfolds to more than it may is given up before it takes the node's memory or disk."""

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import FormatError, NotLazy, Reason
from snapshotter.format.codec import Codec
from snapshotter.format.footer import TAIL_MIN, Flavor
from snapshotter.format.limits import GIB, MIB, TOC_RAW, ZSTD_WINDOW_LOG
from snapshotter.layer import opening
from tests.doubles.layers import BuiltLayer, compress, file, gzip_footer, layer, sha256, skippable
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import World, run, world

SMALL = b"0123456789"
BIG = 32 * MIB

every_codec = pytest.mark.parametrize("flavor", [Flavor.ESTARGZ, Flavor.ZSTD_CHUNKED])


def zstd_frame(plain_blocks: int, window_log: int) -> bytes:
    """A frame of blocks of 128 KiB of one repeated byte, by hand (RFC 8878, section 3.1.1): 4 bytes each."""
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([window_log - 10 << 3])
    for left in range(plain_blocks, 0, -1):
        frame += ((128 << 10) << 3 | 1 << 1 | (left == 1)).to_bytes(3, "little") + b" "
    return frame


def with_zstd_toc(packed: bytes, raw_size: int) -> BuiltLayer:
    """A layer whose compressed TOC is `packed`; its annotations vouch for it."""
    honest = layer(file("a", SMALL), flavor=Flavor.ZSTD_CHUNKED)
    end = honest.payload_end
    position = (end + 8, len(packed), raw_size, 1)
    blob = honest.blob[:end] + skippable(packed) + skippable(struct.pack("<4Q", *position) + b"GnUlInUx")
    prefix = "io.containers.zstd-chunked"
    annotations = {
        f"{prefix}.manifest-checksum": sha256(packed),
        f"{prefix}.manifest-position": ":".join(map(str, position)),
    }
    return replace(honest, blob=blob, digest=sha256(blob), annotations=annotations)


def with_gzip_toc(packed: bytes) -> BuiltLayer:
    honest = layer(file("a", SMALL))
    end = honest.payload_end
    blob = honest.blob[:end] + packed + gzip_footer(b"SG\x16\0" + b"%016x" % end + b"STARGZ")
    return replace(honest, blob=blob, digest=sha256(blob))


def worker_peak(it: World) -> int:
    """The most memory that an idle worker ever had, in bytes."""
    status = [Path(f"/proc/{worker.pid}/status").read_text() for worker in it.room.pool._idle]
    return max(int(line.split()[1]) << 10 for text in status for line in text.splitlines() if line.startswith("VmHWM"))


def refused(tmp_path: Path, bomb: BuiltLayer, words: str, most: int) -> None:
    """The bomb is refused, a worker that met it has never had more memory than `most`, and the next image is lazy."""

    async def main() -> None:
        async with world(tmp_path, MemoryRegistry()) as it:
            with pytest.raises(NotLazy, match=words) as caught:
                await it.pull(bomb)
            assert caught.value.reason is Reason.TOC_INVALID
            assert worker_peak(it) < most
            (honest,) = await it.pull(layer(file("a", SMALL)), tag="honest")
            assert await it.read(honest, "a") == SMALL

    run(main)
    assert [path for path in (tmp_path / "tocs").iterdir() if path.name.startswith("section-")] == []


def test_zstd_toc_that_unfolds_to_more_than_its_footer_says_is_given_up_there(tmp_path: Path) -> None:
    bomb = with_zstd_toc(zstd_frame(8 * GIB // (128 << 10), 20), 1000)
    assert bomb.size < MIB
    refused(tmp_path, bomb, "more than 1000 bytes", 150 * MIB)


def test_zstd_toc_that_wants_a_larger_window_than_allowed_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, with_zstd_toc(zstd_frame(1, ZSTD_WINDOW_LOG + 1), 128 << 10), "damaged", 150 * MIB)


@pytest.mark.long
def test_gzip_toc_that_unfolds_to_gibibytes_is_given_up_at_the_limit(tmp_path: Path) -> None:
    bomb = with_gzip_toc(compress(Codec.GZIP, bytes(TOC_RAW + 64 * MIB)))
    assert bomb.size < 8 * MIB
    refused(tmp_path, bomb, f"more than {TOC_RAW + MIB} bytes", 3 * GIB)


def claiming(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Changes what the TOC says of the one file."""

    def edit(toc: dict[str, Any]) -> None:
        toc["entries"][0].update(fields)

    return edit


def reading(tmp_path: Path, bomb: BuiltLayer, expected: bytes | None) -> None:
    """A read of the bomb gives what is expected, or an error, in few MiB; nothing that is wrong stays on the disk."""

    async def main() -> None:
        async with world(tmp_path, MemoryRegistry()) as it:
            (lazy,) = await it.pull(bomb)
            tracemalloc.start()
            try:
                if expected is None:
                    with pytest.raises(FormatError):
                        await it.read(lazy, "bomb", 0, 10)
                else:
                    assert await it.read(lazy, "bomb", 0, 10) == expected
                assert tracemalloc.get_traced_memory()[1] < 24 * MIB
            finally:
                tracemalloc.stop()
            assert it.store.usage().used < MIB

    run(main)


@every_codec
def test_member_that_unfolds_to_far_more_than_its_file_is_read_as_far_as_the_file(
    tmp_path: Path, flavor: Flavor
) -> None:
    digest = sha256(bytes(10))
    edit = claiming(size=10, digest=digest, chunkDigest=digest)
    reading(tmp_path, layer(file("bomb", bytes(BIG)), flavor=flavor, chunk_size=BIG, edit=edit), bytes(10))


@every_codec
def test_member_that_unfolds_to_what_it_says_but_is_something_else_leaves_nothing(
    tmp_path: Path, flavor: Flavor
) -> None:
    edit = claiming(digest=sha256(b"other"), chunkDigest=sha256(b"other"))
    reading(tmp_path, layer(file("bomb", bytes(BIG)), flavor=flavor, chunk_size=BIG, edit=edit), None)


@every_codec
def test_file_deep_in_a_member_that_unfolds_to_much_is_read_in_little_memory(tmp_path: Path, flavor: Flavor) -> None:
    digest = sha256(bytes(10))
    edit = claiming(size=10, digest=digest, chunkDigest=digest, innerOffset=BIG - 4096)
    reading(tmp_path, layer(file("bomb", bytes(BIG)), flavor=flavor, chunk_size=BIG, edit=edit), bytes(10))


def test_member_that_wants_a_larger_window_than_allowed_is_an_error(tmp_path: Path) -> None:
    frame = zstd_frame(1, ZSTD_WINDOW_LOG + 1)
    data = b" " * (128 << 10)
    honest = layer(file("bomb", data), flavor=Flavor.ZSTD_CHUNKED)
    start = honest.index().member(0).blob_offset
    end = honest.index().member(0).blob_end
    assert len(frame) < end - start
    # The rest is a skippable frame, so that all positions stay.
    blob = honest.blob[:start] + frame + skippable(bytes(end - start - len(frame) - 8)) + honest.blob[end:]
    reading(tmp_path, replace(honest, blob=blob, digest=sha256(blob)), None)


def test_tails_of_many_large_layers_are_not_all_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "TAILS_HELD", 0)
    registry = MemoryRegistry()
    built = [layer(file("a", bytes([number]) * 1000)) for number in range(3)]

    async def main() -> None:
        async with world(tmp_path, registry) as it:
            for lazy, one in zip(await it.pull(*built), built, strict=True):
                footer, rest = [asked.length for asked in registry.requests if asked.digest == one.digest]
                assert footer == TAIL_MIN < rest < one.size
                assert await it.read(lazy, "a") == one.files["a"]

    run(main)
