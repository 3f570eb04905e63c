"""The writer: a layer's tar in, a blob out that is both an ordinary layer and readable piece by piece.

Members are compressed independently by worker threads and written in order, so the blob does not depend on how many
threads there are.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import BinaryIO

from snapshotter.format.digest import Digest, digest_of, from_raw
from snapshotter.format.plain_tar import unheard
from snapshotter.format.tar_entries import TarEntry
from snapshotter.format.tar_headers import END_OF_TAR

from . import gzip_blob, zstd_blob
from .options import Compression, WriterOptions
from .order import arrange
from .plan import Member, Plan
from .tar_split import TarSplit
from .toc import TocBuilder

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """What an image has to say of a blob. Sizes are bytes; `prefetch_size` is 0 when nothing was prioritised.

    `annotations` is all that the layer's descriptor must say. `external_toc` is the gzip tar with the TOC, if the blob
    does not hold it.
    """

    digest: Digest
    size: int
    diff_id: Digest
    plain_size: int
    toc_digest: Digest
    entries: int
    prefetch_size: int
    compression: Compression
    annotations: Mapping[str, str]
    external_toc: bytes | None


def for_containers_storage(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return what a manifest for containers/storage says of a zstd:chunked layer with these annotations.

    Newer ones (podman 5) refuse an image with "both zstd:chunked and eStargz TOC found", however it is pulled; older ones
    (podman 4.3) do not mind [tried with containers/storage 1.65 and 1.43]. stargz-snapshotter mounts nothing without its own.
    """
    return {key: value for key, value in annotations.items() if key != TOC_DIGEST}


def write_layer(
    entries: Sequence[TarEntry],
    tar: BinaryIO,
    blob: BinaryIO,
    pool: Executor,
    options: WriterOptions,
    prioritised: Sequence[str] = (),
    on_progress: Callable[[int], None] = unheard,
) -> WrittenLayer:
    """Write the layer whose `entries` were scanned from `tar` (seekable) to `blob` (appended to, never read).

    `on_progress` is told how many plain bytes went on their way since it was last called; what it raises ends the
    work. Holds about `parallelism` + 2 chunks in memory, beside the entries and the TOC.

    Raises:
        FormatError: the tar ends before an entry does.
    """
    toc = TocBuilder(options)
    out = _Blob(blob)
    split = TarSplit(options.used_level) if options.compression is Compression.ZSTD else None
    plan = Plan(arrange(entries, prioritised), tar, toc, options, split)
    end = b"" if split is None and not options.external_toc else END_OF_TAR
    _write_members(plan.batches(end), out, pool, options, on_progress)
    external_toc = None
    found: Mapping[str, str] = {}
    if split is None:
        toc_digest, external_toc = _end_gzip(out, plan, toc, options)
    else:
        toc_digest, found = _end_zstd(out, toc, split, options)
    return WrittenLayer(
        digest=out.digest,
        size=out.size,
        diff_id=plan.diff_id,
        plain_size=plan.plain_size,
        toc_digest=toc_digest,
        entries=len(toc),
        prefetch_size=out.landmark_offset,
        compression=options.compression,
        annotations={TOC_DIGEST: toc_digest, UNCOMPRESSED_SIZE: str(plan.plain_size), **found},
        external_toc=external_toc,
    )


def _end_gzip(out: "_Blob", plan: Plan, toc: TocBuilder, options: WriterOptions) -> tuple[Digest, bytes | None]:
    """Write TOC and footer; return the TOC's digest and, if it is not in the blob, itself."""
    document = toc.finish()
    toc_digest = digest_of(document)
    gzip_blob.make_archive(document)
    packed = gzip_blob.pack(document, options.used_level)
    if options.external_toc:
        out.write(gzip_blob.external_footer())
        return toc_digest, packed
    plan.count(document)
    offset = out.size
    out.write(packed)
    out.write(gzip_blob.footer(offset))
    return toc_digest, None


def _end_zstd(
    out: "_Blob", toc: TocBuilder, split: TarSplit, options: WriterOptions
) -> tuple[Digest, Mapping[str, str]]:
    """Write TOC, tar-split and footer; return the TOC's digest and where they lie."""
    packed_split = split.finish(END_OF_TAR)
    document = toc.finish(b',"tarSplitDigest":"%b"' % digest_of(packed_split).encode("ascii"))
    ending = zstd_blob.Ending(document, packed_split, split.raw_size, options.used_level, out.size)
    for piece in ending.pieces:
        out.write(piece)
    return digest_of(document), ending.annotations


@dataclass(frozen=True, slots=True)
class _Packed:
    """A compressed member, and the digest of each chunk in it."""

    data: bytes
    digests: tuple[Digest, ...]


class _Blob:
    """The blob as far as it is written."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self.size = 0
        self.landmark_offset = 0

    @property
    def digest(self) -> Digest:
        """The sha256 of the blob so far."""
        return from_raw(self._hash.digest())

    def add(self, batch: list[Member], packed: list[_Packed]) -> None:
        """Write a batch and tell the TOC where its chunks are."""
        start = self.size
        for member, one in zip(batch, packed, strict=True):
            span = start, start + len(one.data)
            for place, digest in zip(member.places, one.digests, strict=True):
                place.row.place_chunk(place.ordinal, span, place.inner_offset, digest)
                if place.landmark:
                    self.landmark_offset = start
            start = span[1]
        # In one go: most members are so small that their bytes cost less than the calls.
        self.write(b"".join([one.data for one in packed]))

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._out.write(data)
        self._hash.update(data)
        self.size += len(data)


def _write_members(
    batches: Iterable[list[Member]],
    out: _Blob,
    pool: Executor,
    options: WriterOptions,
    on_progress: Callable[[int], None],
) -> None:
    under_way: deque[tuple[list[Member], Future[list[_Packed]]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, pool.submit(_pack_all, batch, options.compression, options.used_level)))
            on_progress(sum(len(member.plain) for member in batch))
            if len(under_way) > options.parallelism + 1:
                _add_first(under_way, out)
        while under_way:
            _add_first(under_way, out)
    finally:
        for _, future in under_way:
            future.cancel()


def _add_first(under_way: deque[tuple[list[Member], Future[list[_Packed]]]], out: _Blob) -> None:
    batch, future = under_way.popleft()
    out.add(batch, future.result())


def _pack_all(batch: list[Member], compression: Compression, level: int) -> list[_Packed]:
    """One worker's job."""
    pack = zstd_blob.pack if compression is Compression.ZSTD else gzip_blob.pack
    return [_Packed(pack(member.plain, level), tuple(_digests(member))) for member in batch]


def _digests(member: Member) -> Iterable[Digest]:
    plain = memoryview(member.plain)
    for place in member.places:
        yield digest_of(plain[place.inner_offset : place.inner_offset + place.size])
