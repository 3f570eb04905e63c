"""Sound layers of every dialect, from which the fuzzers begin; and some that our own writer made."""

import io
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from snapshotter.format.codec import Codec
from snapshotter.format.footer import Flavor, parse_footer, toc_json
from snapshotter.format.index import BuildOptions
from snapshotter.format.tar_entries import scan_tar
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.write import write_layer
from tests.doubles.layers import (
    block,
    char,
    compress,
    dir,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    sha256,
    symlink,
    whiteout,
)

NOISE = random.Random(6).randbytes(9000)

ENTRIES = (
    dir("d", xattrs={"user.a": b"1"}),
    file("d/small", b"small"),
    file("d/large", NOISE, mode=0o4755, uid=7, gid=8),
    file("holes", NOISE[:4096] + bytes(8192)),
    file("twice", b"small"),
    symlink("l", "d/small"),
    hardlink("h", "d/large"),
    char("c", 1, 3),
    block("b", 8, 1),
    fifo("p"),
    whiteout("gone"),
    opaque("d"),
    file("empty"),
)

BUILT = (
    layer(*ENTRIES, chunk_size=4096),
    layer(*ENTRIES, chunk_size=4096, share=20_000, prefetch=["d/small"]),
    layer(*ENTRIES, chunk_size=4096, flavor=Flavor.STARGZ),
    layer(*ENTRIES, chunk_size=4096, flavor=Flavor.EXTERNAL),
    layer(*ENTRIES, chunk_size=4096, flavor=Flavor.ZSTD_CHUNKED),
    layer(*ENTRIES, chunk_size=4096, flavor=Flavor.ZSTD_CHUNKED, storage=True),
)


def _written(options: WriterOptions) -> bytes:
    """The first of them, converted by the production writer."""
    tar, blob = io.BytesIO(BUILT[0].tar), io.BytesIO()
    with ThreadPoolExecutor(1) as pool:
        write_layer(scan_tar(tar).entries, tar, blob, pool, options, ())
    return blob.getvalue()


WRITTEN = tuple(
    _written(options)
    for options in (
        WriterOptions(chunk_size=4096),
        WriterOptions(chunk_size=4096, min_chunk_size=20_000),
        WriterOptions(chunk_size=4096, compression=Codec.ZSTD),
    )
)

BLOBS = (*(built.blob for built in BUILT), *WRITTEN)


@dataclass(frozen=True, slots=True)
class Sound:
    """A TOC, and what is known of its blob."""

    toc_json: bytes
    options: BuildOptions


def _sound(blob: bytes, external: bytes) -> Sound:
    footer = parse_footer(blob, len(blob))
    section = external or blob[footer.toc_offset : footer.toc_end]
    options = BuildOptions(footer.codec, len(blob), footer.payload_end, sha256(blob), allow_unverified=True)
    return Sound(toc_json(footer, section), options)


TOCS = tuple(
    _sound(blob, external)
    for blob, external in zip(BLOBS, [*(b.external_toc for b in BUILT), *[b""] * len(WRITTEN)], strict=True)
)

MEMBERS = {
    codec: tuple(compress(codec, data) for data in (b"", b"x", NOISE, NOISE[:500] * 9, bytes(100_000)))
    for codec in Codec
}
