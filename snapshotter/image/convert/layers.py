"""The work on one layer of an image that is converted: fetch, unpack to a plain tar, scan, write anew."""

import tempfile
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
from snapshotter.format.writer.write import WrittenLayer, write_layer
from snapshotter.image import documents
from snapshotter.image.convert.tree import ImageTree
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.ends import Source
from snapshotter.registry.manifest import Descriptor

Advance = Callable[[int], None]
"""Takes how many bytes were done since it was last called; may be called from any thread."""


class Watcher(Protocol):
    """Whoever wants to see how far the work is. Called from any thread."""

    def working(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """A piece of work of about `total` bytes is done while the block runs."""

    def layer_done(self, number: int, count: int, layer: "ConvertedLayer", *, stored: bool) -> None:
        """Layer `number` of `count` is at the target; `stored`: it was not there before."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer before and after. `written` is None for one that stays as it is, `why_kept` says why."""

    source: Descriptor
    descriptor: Descriptor
    diff_id: str
    written: WrittenLayer | None
    why_kept: str = ""


class LayerWork:
    """One layer on its way through the workshop."""

    def __init__(self, source: Descriptor, diff_id: str) -> None:
        self.source = source
        self.diff_id = diff_id
        self.blob = Path()
        self.tar = Path()
        self.entries: list[TarEntry] | None = None
        self.why_kept = ""

    def join(self, tree: ImageTree) -> None:
        """Put the layer on top of those below it; what only they know about it is added to it."""
        try:
            self.entries = tree.add(self.entries)
        except NotLazy as fault:
            self.keep(fault)
        if self.why_kept:
            self.entries = None

    def keep(self, fault: NotLazy) -> None:
        """Decide that the layer stays an ordinary one."""
        self.entries, self.why_kept = None, str(fault)


class Workshop:
    """A scratch directory and the threads that compress; both are gone when the block ends."""

    def __init__(self, scratch: Path, options: WriterOptions, watcher: Watcher) -> None:
        self._parent = scratch
        self._options = options
        self._watcher = watcher

    def __enter__(self) -> Self:
        with disk_errors(self._parent):
            self._directory = tempfile.TemporaryDirectory(dir=self._parent, prefix="convert-")
        self._scratch = Path(self._directory.name)
        self._pool = ThreadPoolExecutor(self._options.parallelism, thread_name_prefix="compress")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._directory.cleanup()

    async def fetch(self, number: int, work: LayerWork, source: Source) -> None:
        """Fetch a layer's blob, unpack it and scan it.

        Raises:
            FormatError: the blob is not a tar, plain or compressed.
            IntegrityError: it does not unpack to what the config says.
        """
        # Two layers of an image may be the same blob; each has a directory of its own.
        scratch = self._scratch / str(number)
        with disk_errors(scratch):
            scratch.mkdir()
        with self._watcher.working(f"fetch layer {number}", work.source.size) as advance:
            work.blob = await source.blob_file(work.source, scratch, advance)
        work.tar = scratch / "plain.tar"
        await trio.to_thread.run_sync(_unpack, work)

    async def write(self, number: int, work: LayerWork, prioritised: Sequence[str]) -> tuple[ConvertedLayer, Path]:
        """Write a layer and return what became of it and the file that has it."""
        if work.entries is None:
            kept = documents.kept_descriptor(work.source)
            return ConvertedLayer(work.source, kept, work.diff_id, None, work.why_kept), work.blob
        scratch = self._scratch / str(number)
        # A fetched copy is of no more use; the source's own file stays, of course.
        if work.blob.parent == scratch:
            work.blob.unlink()
        path = scratch / "blob"
        with self._watcher.working(f"compress layer {number}", work.tar.stat().st_size) as advance:
            written = await trio.to_thread.run_sync(self._write, work, path, prioritised, advance)
        work.tar.unlink()
        work.entries = None
        descriptor = documents.layer_descriptor(written, work.source)
        return ConvertedLayer(work.source, descriptor, written.diff_id, written), path

    def tell_stored(self, number: int, count: int, layer: ConvertedLayer, *, stored: bool) -> None:
        """Pass on that a layer is at the target."""
        self._watcher.layer_done(number, count, layer, stored=stored)

    def _write(self, work: LayerWork, path: Path, prioritised: Sequence[str], advance: Advance) -> WrittenLayer:
        with disk_errors(path), work.tar.open("rb") as tar, path.open("wb") as blob:
            return write_layer(
                work.entries or (), tar, blob, self._pool, self._options, prioritised, _cancellable(advance)
            )


def _unpack(work: LayerWork) -> None:
    with disk_errors(work.tar), work.blob.open("rb") as blob, work.tar.open("w+b") as tar:
        diff_id = copy_plain(blob, tar, _cancellable(lambda _size: None))
        if diff_id != work.diff_id:
            raise IntegrityError(
                f"layer {work.source.digest} unpacks to {diff_id}, but the image's config says {work.diff_id}"
            )
        try:
            work.entries = scan_tar(tar)
        except NotLazy as fault:
            work.keep(fault)


def _cancellable(advance: Advance) -> Advance:
    """`advance`, which also ends a thread's work when the conversion is cancelled."""

    def told(size: int) -> None:
        trio.from_thread.check_cancelled()
        advance(size)

    return told
