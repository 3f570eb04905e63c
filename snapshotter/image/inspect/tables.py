"""A layer's table of contents, read from the end of its blob and judged as the daemon would; the rest of the blob is never read."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Self

import trio

from snapshotter.errors import BlobMissing, FormatError, NotLazy, RangeUnsupported, Reason, SnapshotterError
from snapshotter.format.digest import digest_of, parse_digest
from snapshotter.format.footer import (
    Flavor,
    Footer,
    first_tail_size,
    footer_from_annotations,
    parse_footer,
    section_in,
    toc_json,
)
from snapshotter.format.index_build import build_index
from snapshotter.format.layout import BuildOptions
from snapshotter.format.limits import TOC_COMPRESSED
from snapshotter.format.toc import decode_entries
from snapshotter.image.documents import LAYERS
from snapshotter.image.inspect.contents import Listing, listing
from snapshotter.layer.opening import anchor_of
from snapshotter.registry.manifest import Descriptor

ReadRange = Callable[[Descriptor, int, int], Awaitable[bytes]]
ExternalToc = Callable[[Descriptor], Awaitable[bytes]]
"""The compressed table of contents of a layer that keeps it elsewhere. Raises SnapshotterError."""


@dataclass(frozen=True, slots=True)
class Toc:
    """A table of contents. `size` is how many bytes it takes compressed, `document` its JSON of `json_size` bytes, `agrees` whether that is what the
    image's manifest promises, None if that promises nothing.
    """

    size: int
    json_size: int
    document: bytes
    digest: str
    agrees: bool | None
    listing: Listing


@dataclass(frozen=True, slots=True)
class LayerLook:
    """What is known of a layer, the lowest of which has number 1. `reason` is None if it can be mounted lazily; else `why` says it all.

    `format` is a dialect of lazily pullable layers (`Flavor`), or how an ordinary one is compressed: `gzip`, `zstd` or `tar`.
    """

    number: int
    descriptor: Descriptor
    diff_id: str
    format: str
    toc: Toc | None
    reason: Reason | None
    why: str

    def outlined(self) -> Self:
        """The same without the table of contents and its entries, which may be large."""
        if self.toc is None:
            return self
        return replace(self, toc=replace(self.toc, document=b"", listing=replace(self.toc.listing, rows=())))


async def look_into(
    number: int, layer: Descriptor, diff_id: str, read: ReadRange, external: ExternalToc | None = None
) -> LayerLook:
    """Look into one layer. What is wrong with it is told by the result, also that its table is elsewhere and nobody knows where.

    Raises:
        SnapshotterError: the source does not answer, or lets nobody in.
    """
    kind = _compression(layer)
    footer: Footer | None = None
    try:
        if layer.media_type not in LAYERS:
            raise NotLazy(Reason.MEDIA_TYPE, f"its media type is {layer.media_type}: no layer that could be lazy")
        tail_size = first_tail_size(layer.size)
        tail = await _read(layer, layer.size - tail_size, tail_size, read)
        # What a verified manifest says comes before what the blob says, as for the daemon.
        footer = footer_from_annotations(layer.annotations, layer.size) or parse_footer(tail, layer.size)
        kind = footer.flavor
        section = await _section(layer, footer, tail, read, external)
        toc, fault = await trio.to_thread.run_sync(_judged, layer, footer, section)
    except (FormatError, NotLazy, BlobMissing, RangeUnsupported) as error:
        # With a footer it was meant to be lazy, and is not sound.
        unsound = isinstance(error, FormatError) and footer is not None
        reason = Reason.TOC_INVALID if unsound else error.reason
        return LayerLook(number, layer, diff_id, kind, None, reason, str(error))
    return LayerLook(number, layer, diff_id, kind, toc, fault.reason if fault else None, str(fault or ""))


async def _section(
    layer: Descriptor, footer: Footer, tail: bytes, read: ReadRange, external: ExternalToc | None
) -> bytes:
    """The compressed table of contents."""
    if footer.flavor is Flavor.EXTERNAL:
        if external is None:
            raise NotLazy(Reason.NOT_LAZY_FORMAT, "its table of contents is in another image")
        return await external(layer)
    have = section_in(tail, footer, layer.size)
    missing = footer.toc_end - footer.toc_offset - len(have)
    if missing > TOC_COMPRESSED:
        raise NotLazy(Reason.LIMIT, f"its table of contents has {missing} bytes; the limit is {TOC_COMPRESSED}")
    return (await _read(layer, footer.toc_offset, missing, read) if missing else b"") + have


async def _read(layer: Descriptor, start: int, size: int, read: ReadRange) -> bytes:
    try:
        return await read(layer, start, size)
    except FormatError as error:
        raise NotLazy(Reason.BLOB_MISSING, str(error)) from error  # it is shorter than its manifest says


def _judged(layer: Descriptor, footer: Footer, section: bytes) -> tuple[Toc, SnapshotterError | None]:
    """The table, and what keeps it from being mounted. Raises FormatError: it is not sound."""
    document = toc_json(footer, section)
    digest = digest_of(document)
    fault: SnapshotterError | None = None
    agrees: bool | None = None
    try:
        anchor = anchor_of(layer, None, allow_unverified=False)
    except NotLazy as error:
        fault = error
    else:
        compressed = digest_of(section)
        agrees = anchor.toc_digest in (None, digest) and anchor.section_digest in (None, compressed)
        if not agrees:
            promised = anchor.toc_digest if anchor.toc_digest not in (None, digest) else anchor.section_digest
            fault = NotLazy(
                Reason.TOC_MISMATCH,
                f"its table of contents has digest {digest}, the image's manifest promises {promised}: "
                "the image is damaged or was tampered with; convert and push it again",
            )
    options = [
        BuildOptions(footer.codec, layer.size, footer.payload_end, parse_digest(layer.digest), allow_unverified=loose)
        for loose in (False, True)
    ]
    try:
        build_index(document, options[0])
    except (FormatError, NotLazy) as error:
        # Sound, perhaps, but for the digests of its pieces: then it can be shown.
        build_index(document, options[1])
        fault = fault or NotLazy(Reason.TOC_INVALID, str(error))
    return Toc(len(section), len(document), document, digest, agrees, listing(decode_entries(document))), fault


def _compression(layer: Descriptor) -> str:
    for word in ("gzip", "zstd"):
        if layer.media_type.endswith((f"+{word}", f".{word}")):
            return word
    return "tar" if layer.media_type in LAYERS else "unknown"
