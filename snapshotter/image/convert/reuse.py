"""Layers that are right already: in the wanted format, with a table of contents that can be mounted and is vouched for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from snapshotter.errors import FormatError, RangeUnsupported
from snapshotter.format.attributes import Clock
from snapshotter.format.codec import Codec
from snapshotter.format.digest import digest_of, parse_digest
from snapshotter.format.footer import Flavor, Footer, first_tail_size, parse_footer, section_in, toc_anchor, toc_json
from snapshotter.format.index_build import build_index
from snapshotter.format.layout import BuildOptions
from snapshotter.format.limits import TOC_COMPRESSED, TOC_REUSED
from snapshotter.format.tar_entries import RESERVED, EntryType, TarEntry, clean_name
from snapshotter.format.toc import Entry, decode_entries
from snapshotter.format.writer.content import read_content
from snapshotter.format.writer.write import TOC_DIGEST
from snapshotter.format.writer.zstd_blob import toc_annotations
from snapshotter.image.places.disk import PIECE
from snapshotter.image.places.ends import Source
from snapshotter.registry.manifest import Descriptor

_WANTED = {Codec.GZIP: Flavor.ESTARGZ, Codec.ZSTD: Flavor.ZSTD_CHUNKED}


@dataclass(frozen=True, slots=True)
class Table:
    """A layer's table of contents: `section` is how it lies in the blob, `document` its JSON."""

    footer: Footer
    section: bytes
    document: bytes

    @property
    def digest(self) -> str:
        """The digest of the document."""
        return digest_of(self.document)

    @property
    def annotations(self) -> dict[str, str]:
        """What the layer's annotations must say of it."""
        found = {TOC_DIGEST: self.digest}
        if self.footer.codec is Codec.ZSTD:
            found |= toc_annotations(self.section, self.footer.toc_offset, len(self.document))
        return found


async def vouched_table(layer: Descriptor, source: Source, wanted: Codec) -> Table | None:
    """The table of contents of a layer in the wanted format, if the layer's annotations vouch for it; else None.

    Reads the end of the blob alone.
    """
    try:
        anchor, annotated = toc_anchor(layer.annotations), layer.annotations.get(TOC_DIGEST)
        if not _of_type(layer, wanted) or (anchor is None and annotated is None):
            return None

        async def read(start: int, size: int) -> bytes:
            return await source.read_range(layer, start, size)

        tail = await read(layer.size - (size := first_tail_size(layer.size)), size)
        footer = parse_footer(tail, layer.size)
        have = section_in(tail, footer, layer.size)
        missing = footer.toc_end - footer.toc_offset - len(have)
        if footer.flavor is not _WANTED[wanted] or missing > TOC_COMPRESSED:
            return None
        section = (await read(footer.toc_offset, missing) if missing > 0 else b"") + have
        if annotated is None and anchor != digest_of(section):
            return None
        table = await trio.to_thread.run_sync(_sound, layer, footer, section)
    except (FormatError, RangeUnsupported):
        return None  # fetched as a whole there may be one
    return table if annotated in (None, table.digest) else None


def table_in(blob: Path, layer: Descriptor, wanted: Codec, entries: Sequence[TarEntry], tar: BinaryIO) -> Table | None:
    """The same for a layer whose blob is in a file that was verified as a whole, whether annotations vouch for it or not.

    As ours will, it must say of the layer what `tar` does, which `entries` were scanned from. Works in a thread of trio's.
    """
    try:
        with blob.open("rb") as file:
            file.seek(layer.size - min(layer.size, first_tail_size(layer.size)))
            footer = parse_footer(file.read(), layer.size)
            if not _of_type(layer, wanted) or footer.flavor is not _WANTED[wanted]:
                return None
            file.seek(footer.toc_offset)
            table = _sound(layer, footer, file.read(footer.toc_end - footer.toc_offset))
        return table if _agrees(table, entries, tar) else None
    except FormatError:
        return None


def entries_of(table: Table) -> list[TarEntry]:
    """The entries of a layer as its table of contents tells them; their bytes are not known.

    Raises:
        FormatError: it cannot be told.
    """
    clock = Clock()
    return [_tar_entry(entry, clock) for entry in decode_entries(table.document) if _counts(entry)]


def _of_type(layer: Descriptor, wanted: Codec) -> bool:
    return layer.media_type.endswith((f"+{wanted}", f".{wanted}"))


def _sound(layer: Descriptor, footer: Footer, section: bytes) -> Table:
    """The table, once everything in it has been checked as for a mount."""
    table = Table(footer, section, toc_json(footer, section, TOC_REUSED))
    digest = parse_digest(layer.digest)
    build_index(
        table.document, BuildOptions(footer.codec, layer.size, footer.payload_end, digest, allow_unverified=False)
    )
    return table


def _agrees(table: Table, entries: Sequence[TarEntry], tar: BinaryIO) -> bool:
    """Whether a table says what the tar says: the same names, with the same attributes and contents."""
    left = {entry.name: entry for entry in entries}
    clock = Clock()
    there: TarEntry | None = None
    for entry in decode_entries(table.document):
        if entry.type != "chunk":
            if not _counts(entry):
                there = None
                continue
            there = left.pop(clean_name(entry.name), None)
            if there is None or _told(there) != _told(_tar_entry(entry, clock)):
                return False
        if there is None or there.type is not EntryType.REG or not there.size:
            continue
        size = entry.chunk_size or there.size - entry.chunk_offset
        if size < there.size and entry.digest and not _holds(there, tar, 0, there.size, entry.digest):
            return False
        if not _holds(there, tar, entry.chunk_offset, size, entry.chunk_digest or entry.digest):
            return False
    return not left


def _told(entry: TarEntry) -> tuple[object, ...]:
    """What a container sees of an entry; a hard link is what it points to."""
    if entry.type is EntryType.HARDLINK:
        return entry.type, entry.link_name
    attributes = entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.device, dict(entry.xattrs)
    return entry.type, entry.link_name, *attributes


def _holds(file: TarEntry, tar: BinaryIO, start: int, size: int, digest: str) -> bool:
    """Whether a part of a file in the tar has a digest."""
    whole = hashlib.sha256()
    for at in range(start, start + size, PIECE):
        trio.from_thread.check_cancelled()
        whole.update(read_content(file, tar, at, min(PIECE, start + size - at)))
    return f"sha256:{whole.hexdigest()}" == digest


def _counts(entry: Entry) -> bool:
    return entry.type != "chunk" and clean_name(entry.name) not in RESERVED


def _tar_entry(entry: Entry, clock: Clock) -> TarEntry:
    kind = EntryType(entry.type)
    return TarEntry(
        name=clean_name(entry.name),
        type=kind,
        mode=entry.mode & 0o7777,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=clock.mtime_ns(entry.modtime),
        size=entry.size,
        link_name=clean_name(entry.link_name) if kind is EntryType.HARDLINK else entry.link_name,
        device=(entry.dev_major, entry.dev_minor),
        xattrs={key: value or b"" for key, value in (entry.xattrs or {}).items()},
    )
