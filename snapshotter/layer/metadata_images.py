"""EROFS images of layers on disk: `<root>/erofs/<toc>-<layer>-<where>.<revision>.erofs`.

The name says everything that the bytes depend on: equal names have equal bytes, and what is wrong with one is mended by
writing it again from the index.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from snapshotter.format.erofs import EROFS_REVISION
from snapshotter.layer.toc_pool import TocPool
from snapshotter.layer.toc_worker import ImageJob
from snapshotter.store.state import LayerRecord

log = logging.getLogger(__name__)


class MetadataImages:
    """Used on the trio thread; `path` anywhere. `place` is the store's secret name, which redirects contain."""

    def __init__(self, directory: Path, place: str, pool: TocPool, index_path: Callable[[LayerRecord], Path]) -> None:
        self._directory = directory
        self._place = place
        self._pool = pool
        self._index_path = index_path
        self._making: dict[Path, trio.Event] = {}

    def path(self, record: LayerRecord) -> Path:
        """Where the image of a layer lies, or would lie."""
        where = hashlib.sha256(f"{self._place}/{record.domain}".encode()).hexdigest()[:16]
        index = self._index_path(record).stem  # with its revision: node numbers decide where inodes lie
        return self._directory / f"{index}-{where}.{EROFS_REVISION}.erofs"

    async def ensure(self, record: LayerRecord, *, anew: bool = False) -> Path:
        """Have the image on disk, written now if it is missing or `anew` is set.

        Raises:
            SnapshotterError: the index is damaged, the disk is full, or the layer has what EROFS cannot hold.
        """
        path = self.path(record)
        while (making := self._making.get(path)) is not None:
            await making.wait()
            anew = False
        if not anew and path.exists():
            return path
        self._making[path] = trio.Event()
        try:
            index = str(self._index_path(record))
            await self._pool.run(ImageJob(index, str(path), self._place, record.domain, record.layer_digest))
        finally:
            self._making.pop(path).set()
        return path

    def drop(self, record: LayerRecord, left: Iterable[LayerRecord]) -> None:
        """Delete the image of a layer unless one of those left has the same. Blocking."""
        path = self.path(record)
        if all(self.path(other) != path for other in left):
            path.unlink(missing_ok=True)

    def tidy(self, records: Iterable[LayerRecord]) -> None:
        """Delete what no layer needs: images of removed layers, other revisions and places, and half written ones.

        Blocking; at the start only, when nothing is being written.
        """
        needed = {self.path(record) for record in records}
        with suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path not in needed and path.is_file():
                    path.unlink(missing_ok=True)
