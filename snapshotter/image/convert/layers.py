"""The work on one layer of an image that is converted: fetch, unpack to a plain tar, scan, write anew, store."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import trio

from snapshotter.errors import IntegrityError, NotLazy
from snapshotter.format.plain_tar import copy_plain
from snapshotter.format.tar_entries import TarEntry, scan_tar
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.write import TOC_DIGEST, WrittenLayer, write_layer
from snapshotter.image import documents
from snapshotter.image.convert.reuse import Table, entries_of, table_in, vouched_table
from snapshotter.image.convert.tree import ImageTree
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import OnProgress, Source, Target
from snapshotter.image.scratch import scratch_directory
from snapshotter.registry.manifest import Descriptor


class Watcher(Protocol):
    """Whoever wants to see how far the work is. Called from any thread."""

    def working(self, what: str, total: int | None) -> AbstractContextManager[OnProgress]:
        """A piece of work of about `total` bytes, None if nobody knows, is done while the block runs."""

    def image(self, platform: str) -> None:
        """What follows is about the image for `platform`; told where there are several."""

    def layer_done(self, number: int, count: int, layer: "ConvertedLayer", *, stored: bool) -> None:
        """Layer `number` of `count` is at the target; `stored`: it was not there before."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer before and after. `written` is None for one that stays as it is: `reused` because it is right already, or an
    ordinary one for the reason in `why_kept`. `seconds` is how long it took to compress.
    """

    source: Descriptor
    descriptor: Descriptor
    diff_id: str
    written: WrittenLayer | None
    why_kept: str = ""
    reused: bool = False
    seconds: float = 0.0

    @property
    def toc_digest(self) -> str | None:
        """What the layer's annotation says, None if it has no table of contents."""
        return self.descriptor.annotations.get(TOC_DIGEST)


class LayerWork:
    """One layer on its way through the workshop."""

    def __init__(self, source: Descriptor, diff_id: str) -> None:
        self.source = source
        self.diff_id = diff_id
        self.blob: Path | None = None
        """The layer as it came; None before it is fetched, and where it need not be."""
        self.tar = Path()
        self.written = Path()
        self.entries: list[TarEntry] | None = None
        self.prefetched: list[str] = []
        """What an earlier conversion put in front."""
        self.reused: Table | None = None
        self.lacks_directories = False
        """It was to stay, and leaves out directories that only the layers below it describe."""
        self.why_kept = ""

    def join(self, tree: ImageTree) -> None:
        """Put the layer on top of those below it; what only they know about it is added to it."""
        before = len(self.entries or ())
        try:
            self.entries = tree.add(self.entries)
        except NotLazy as fault:
            self.keep(fault)
        self.lacks_directories = self.reused is not None and len(self.entries or ()) > before
        if self.why_kept:
            self.entries = None

    def keep(self, fault: NotLazy) -> None:
        """Decide that the layer stays an ordinary one; one that is lazy already stays that."""
        if self.reused is None:
            self.entries, self.why_kept = None, str(fault)


class Workshop:
    """A scratch directory and the threads that compress; both are gone when the block ends."""

    def __init__(self, scratch: Path, options: WriterOptions, watcher: Watcher, *, reuse: bool) -> None:
        self._parent = scratch
        self._options = options
        self._watcher = watcher
        self._reuse = reuse

    def __enter__(self) -> Self:
        self._directory = scratch_directory(self._parent)
        self._scratch = self._directory.__enter__()
        self._pool = ThreadPoolExecutor(self._options.parallelism, thread_name_prefix="compress")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._directory.__exit__(None, None, None)

    async def fetch(self, number: int, work: LayerWork, source: Source) -> None:
        """Fetch a layer's blob, unpack it and scan it; of one that is right already no more than its table of contents.

        Raises:
            FormatError: the blob is not a tar, plain or compressed.
            IntegrityError: it does not unpack to what the config says.
        """
        # Two layers of an image may be the same blob; each has a directory of its own.
        scratch = self._scratch / str(number)
        with disk_errors(scratch):
            scratch.mkdir()
        if self._reuse:
            work.reused = await vouched_table(work.source, source, self._options.compression)
            if work.reused is not None:
                work.entries = await trio.to_thread.run_sync(entries_of, work.reused)
                return
        await self._fetch_and_unpack(number, work, source)

    async def take_back(self, number: int, work: LayerWork, source: Source) -> None:
        """Have a layer that was to stay converted after all. Raises as `fetch`."""
        work.reused = None
        if work.blob is None:
            await self._fetch_and_unpack(number, work, source)

    async def _fetch_and_unpack(self, number: int, work: LayerWork, source: Source) -> None:
        await self._fetch_blob(number, work, source)
        work.tar = self._scratch / str(number) / "plain.tar"
        with self._watcher.working(f"unpack layer {number}", None) as advance:
            await trio.to_thread.run_sync(self._unpack, work, advance)

    async def write(self, number: int, work: LayerWork, prioritised: Sequence[str]) -> ConvertedLayer:
        """Write a layer into the scratch directory, unless it stays as it is; what becomes of it."""
        if work.reused is not None:
            kept = documents.kept_descriptor(work.source, work.reused.annotations)
            return ConvertedLayer(work.source, kept, work.diff_id, None, reused=True)
        if work.entries is None:
            kept = documents.kept_descriptor(work.source)
            return ConvertedLayer(work.source, kept, work.diff_id, None, work.why_kept)
        scratch = self._scratch / str(number)
        # A fetched copy is of no more use; the source's own file stays, of course.
        if work.blob is not None and work.blob.parent == scratch:
            work.blob.unlink()
        work.written = scratch / "blob"
        began = time.monotonic()
        with self._watcher.working(f"compress layer {number}", work.tar.stat().st_size) as advance:
            written = await trio.to_thread.run_sync(self._write, work, prioritised, advance)
        work.tar.unlink()
        work.entries = None
        descriptor = documents.layer_descriptor(written, work.source)
        return ConvertedLayer(work.source, descriptor, written.diff_id, written, seconds=time.monotonic() - began)

    async def store(
        self, number: int, count: int, work: LayerWork, layer: ConvertedLayer, source: Source, target: Target
    ) -> None:
        """Have a layer's blob at the target; one that was never fetched only if it must be sent."""
        stored = layer.written is not None or not await target.adopt(layer.descriptor)
        if stored:
            path = (
                work.written if layer.written is not None else work.blob or await self._fetch_blob(number, work, source)
            )
            with self._watcher.working(f"store layer {number}", layer.descriptor.size) as advance:
                stored = await target.put_blob(layer.descriptor, path, advance)
        self._watcher.layer_done(number, count, layer, stored=stored)

    async def _fetch_blob(self, number: int, work: LayerWork, source: Source) -> Path:
        with self._watcher.working(f"fetch layer {number}", work.source.size) as advance:
            work.blob = await source.blob_file(work.source, self._scratch / str(number), advance)
        return work.blob

    def _unpack(self, work: LayerWork, advance: OnProgress) -> None:
        if work.blob is None:
            return
        with disk_errors(work.tar), work.blob.open("rb") as blob, work.tar.open("w+b") as tar:
            diff_id = copy_plain(blob, tar, _cancellable(advance))
            if diff_id != work.diff_id:
                raise IntegrityError(
                    f"layer {work.source.digest} unpacks to {diff_id}, but the image's config says {work.diff_id}"
                )
            try:
                scanned = scan_tar(tar, trio.from_thread.check_cancelled)
                work.entries, work.prefetched = scanned.entries, scanned.prefetched
            except NotLazy as fault:
                work.keep(fault)
                return
            if self._reuse and not work.lacks_directories:
                work.reused = table_in(work.blob, work.source, self._options.compression, work.entries, tar)

    def _write(self, work: LayerWork, prioritised: Sequence[str], advance: OnProgress) -> WrittenLayer:
        path = work.written
        with disk_errors(path), work.tar.open("rb") as tar, path.open("wb") as blob:
            return write_layer(
                work.entries or (), tar, blob, self._pool, self._options, prioritised, _cancellable(advance)
            )


def _cancellable(advance: Callable[[int], None]) -> OnProgress:
    """`advance`, which also ends a thread's work when the conversion is cancelled."""

    def told(size: int) -> None:
        trio.from_thread.check_cancelled()
        advance(size)

    return told
