"""From a layer's descriptor in a verified manifest to its TOC and index on disk: one tail request, one worker job."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from snapshotter.errors import NotLazy, Reason, SnapshotterError, reason_of
from snapshotter.format.footer import (
    TAIL_MIN,
    Flavor,
    Footer,
    first_tail_size,
    footer_from_annotations,
    parse_footer,
    section_in,
    toc_anchor,
)
from snapshotter.format.limits import TOC_COMPRESSED
from snapshotter.layer.sources import RegistryAccess
from snapshotter.layer.toc_jobs import Done, Job
from snapshotter.layer.toc_pool import TocPool
from snapshotter.registry.manifest import Descriptor, parse_manifest
from snapshotter.registry.reference import Reference

if TYPE_CHECKING:
    from snapshotter.registry.blob import Blob

log = logging.getLogger(__name__)

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
DATA_LAYER = "containerd.io/snapshot/stargz/layer.digest"
EXTERNAL_SUFFIX = "-esgztoc"

_OTHER_BYTES = frozenset({Reason.NOT_LAZY_FORMAT, Reason.TOC_MISMATCH, Reason.TOC_INVALID})
"""What bytes that are not the layer's may come to."""

TAILS_HELD = 256 << 20
"""Bytes of the tails of blobs that are held in memory at once, of all images together. Beyond them a layer's footer is asked for
alone, and its TOC goes to the disk as it comes: one request more, and an image of many large layers takes no memory from others."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A layer whose TOC was verified and whose index is on disk."""

    footer: Footer
    done: Done


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a TOC is checked against; both empty only where the admin allows layers without an anchor."""

    toc_digest: str | None
    section_digest: str | None


def anchor_of(descriptor: Descriptor, label: str | None, *, allow_unverified: bool) -> Anchor:
    """The trust anchor of a layer: its manifest's annotations, and the label where the manifest has none.

    Raises NotLazy if there is none, or if label and manifest disagree (design: labels are the image author's words).
    """
    annotated = descriptor.annotations.get(TOC_DIGEST)
    checksum = toc_anchor(descriptor.annotations)
    if annotated is not None and label is not None and annotated != label:
        raise NotLazy(
            Reason.TOC_MISMATCH,
            f"the label of layer {descriptor.digest} names TOC {label}, its manifest names {annotated}",
        )
    toc_digest = annotated or label
    if toc_digest is None and checksum is None and not allow_unverified:
        raise NotLazy(
            Reason.NO_ANCHOR,
            f"no annotation {TOC_DIGEST}: not made for lazy pulling, or nothing to verify it with; "
            "convert the image (snapshotter image convert)",
        )
    return Anchor(toc_digest, checksum)


class Opener:
    """Fetches and checks TOCs. Used on the trio thread."""

    def __init__(
        self,
        registry: RegistryAccess,
        pool: TocPool,
        root: Path,
        count_bytes: Callable[[str, int], None],
        known_tails: Callable[[str], list[tuple[int, int]]],
    ) -> None:
        """`count_bytes` is told of each host's bytes as they come. `known_tails` gives (blob size, bytes from TOC to end) of layers of a host and repository; it blocks."""
        self._known_tails = known_tails
        self._registry = registry
        self._pool = pool
        self._root = root
        self._count_bytes = count_bytes
        self._held = 0

    async def open(
        self, reference: Reference, descriptor: Descriptor, anchor: Anchor, *, allow_unverified: bool
    ) -> Opened:
        """Fetch footer and TOC of a layer, verify, and build its index.

        What the manifest promises and the bytes do not keep is fetched once more: the wire or one mirror may be at fault, and
        a layer that is unpacked instead stays so.

        Raises NotLazy with the reason; nothing of a failed attempt stays on disk.
        """
        blob = (await self._registry.get()).blob(reference, descriptor.digest, descriptor.size)
        try:
            return await self._open(reference, descriptor, anchor, blob, allow_unverified=allow_unverified)
        except NotLazy as failure:
            promised = anchor.toc_digest is not None or anchor.section_digest is not None
            if not promised or failure.reason not in _OTHER_BYTES:
                raise
            log.warning("%s; fetching it once more", failure)
        blob.forget_redirects()
        return await self._open(reference, descriptor, anchor, blob, allow_unverified=allow_unverified)

    async def _open(
        self, reference: Reference, descriptor: Descriptor, anchor: Anchor, blob: "Blob", *, allow_unverified: bool
    ) -> Opened:
        with lazy_reasons(descriptor.digest), self._scratch() as section:
            footer = footer_from_annotations(descriptor.annotations, descriptor.size)
            if footer is not None:
                await self._save(blob, footer.toc_offset, footer.toc_end, section, b"")
            else:
                footer = await self._footer_and_section(reference, descriptor, blob, section)
            job = Job(
                section=str(section),
                flavor=footer.flavor,
                codec=footer.codec,
                toc_offset=footer.toc_offset,
                toc_end=footer.toc_end,
                toc_raw_size=footer.toc_raw_size,
                payload_end=footer.payload_end,
                blob_size=descriptor.size,
                layer_digest=descriptor.digest,
                toc_digest=anchor.toc_digest,
                section_digest=anchor.section_digest,
                allow_unverified=allow_unverified,
                toc_directory=str(self._root / "tocs"),
                index_directory=str(self._root / "index"),
            )
            return Opened(footer, await self._pool.run(job))

    async def _footer_and_section(
        self, reference: Reference, descriptor: Descriptor, blob: "Blob", section: Path
    ) -> Footer:
        known = await trio.to_thread.run_sync(self._known_tails, reference.name)
        with self._tail_size(descriptor.size, known) as tail_size:
            tail_start = descriptor.size - tail_size
            tail = await blob.read_range(tail_start, tail_size)
            return await self._rest(reference, descriptor, section, blob, tail)

    @contextmanager
    def _tail_size(self, blob_size: int, known: list[tuple[int, int]]) -> Iterator[int]:
        """How many bytes of the tail to ask for; while they are held, they count."""
        size = first_tail_size(blob_size, known)
        if self._held + size > TAILS_HELD:
            size = min(blob_size, TAIL_MIN)
        self._held += size
        try:
            yield size
        finally:
            self._held -= size

    async def _rest(
        self, reference: Reference, descriptor: Descriptor, section: Path, blob: "Blob", tail: bytes
    ) -> Footer:
        """The footer in a tail; what the tail lacks of the TOC is fetched."""
        self._count_bytes(blob.serving, len(tail))
        footer = parse_footer(tail, descriptor.size)
        if footer.flavor is Flavor.EXTERNAL:
            await self._external_section(reference, descriptor, section)
            return footer
        have = section_in(tail, footer, descriptor.size)
        await self._save(blob, footer.toc_offset, footer.toc_end - len(have), section, have)
        return footer

    async def _external_section(self, reference: Reference, descriptor: Descriptor, section: Path) -> None:
        """The TOC of an `estargz-external-toc` layer: a layer of its own in the image `<reference>-esgztoc`."""
        if reference.tag is None:
            raise NotLazy(
                Reason.NOT_LAZY_FORMAT,
                f"layer {descriptor.digest} keeps its TOC in another image, which is found by tag; {reference} has none",
            )
        tocs = Reference(reference.host, reference.repository, reference.tag + EXTERNAL_SUFFIX, None)
        registry = await self._registry.get()
        answer = await registry.manifest(tocs)
        manifest = parse_manifest(answer.raw, answer.media_type)
        for layer in getattr(manifest, "layers", ()):
            if layer.annotations.get(DATA_LAYER) == descriptor.digest:
                await self._save(registry.blob(tocs, layer.digest, layer.size), 0, layer.size, section, b"")
                return
        raise NotLazy(Reason.NOT_LAZY_FORMAT, f"image {tocs} has no TOC for layer {descriptor.digest}")

    async def _save(self, blob: "Blob", start: int, end: int, section: Path, rest: bytes) -> None:
        """Write blob bytes [start, end) and then `rest` to a file, without holding them in memory."""
        if end - start + len(rest) > TOC_COMPRESSED:
            raise NotLazy(
                Reason.LIMIT,
                f"the TOC in blob {blob.digest} has {end - start + len(rest)} compressed bytes; "
                f"the limit is {TOC_COMPRESSED}",
            )
        async with await trio.open_file(section, "wb") as file:
            if end > start:
                async with blob.open_range(start, end - start) as body:
                    async for piece in body:
                        self._count_bytes(blob.serving, len(piece))
                        await file.write(piece)
            await file.write(rest)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(prefix="section-", dir=self._root / "tocs")
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def lazy_reasons(subject: str) -> Iterator[None]:
    """Turn what can go wrong while a layer is opened into NotLazy with its reason."""
    try:
        yield
    except NotLazy:
        raise
    except trio.TooSlowError as error:
        raise NotLazy(Reason.TIMEOUT, f"layer {subject}: opening it took longer than lazy.resolve_timeout_s") from error
    except (SnapshotterError, OSError) as error:
        raise NotLazy(reason_of(error), f"layer {subject}: {error}") from error
