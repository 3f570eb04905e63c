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

from snapshotter.errors import PlaneError, SnapshotterError
from snapshotter.format.erofs_layout import EROFS_REVISION
from snapshotter.layer.toc_jobs import ImageJob
from snapshotter.layer.toc_pool import TocPool
from snapshotter.store.state import LayerRecord

RETRY_AFTER_S = 60.0
"""So long an image that could not be written is not tried again."""

log = logging.getLogger(__name__)


class MetadataImages:
    """Used on the trio thread; `path` and `failure` anywhere. `place` is the store's secret name, which redirects contain.

    Images are written in `nursery`: who does not want to wait any longer stops nobody's writing.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        directory: Path,
        place: str,
        pool: TocPool,
        index_path: Callable[[LayerRecord], Path],
        attached: Callable[[], Iterable[LayerRecord]],
    ) -> None:
        """`attached` gives the layers that there are at this moment."""
        self._attached = attached
        self._nursery = nursery
        self._directory = directory
        self._place = place
        self._pool = pool
        self._index_path = index_path
        self._making: dict[Path, trio.Event] = {}
        self._failed: dict[Path, tuple[float, SnapshotterError]] = {}

    def path(self, record: LayerRecord) -> Path:
        """Where the image of a layer lies, or would lie."""
        where = hashlib.sha256(f"{self._place}/{record.domain}".encode()).hexdigest()[:16]
        index = self._index_path(record).stem  # with its revision: node numbers decide where inodes lie
        return self._directory / f"{index}-{where}.{EROFS_REVISION}.erofs"

    def begin(self, record: LayerRecord, *, anew: bool = False) -> None:
        """Have the image written if it is missing, or `anew`; not while it is, and not soon after that failed."""
        path = self.path(record)
        failed = self._failed.get(path)
        if path in self._making or (failed is not None and trio.current_time() < failed[0] + RETRY_AFTER_S):
            return
        if anew or not path.exists():
            self._failed.pop(path, None)
            self._making[path] = trio.Event()
            self._nursery.start_soon(self._write, path, record)

    async def ensure(self, record: LayerRecord) -> Path:
        """Have the image on disk, written now if it is missing.

        Raises:
            SnapshotterError: the index is damaged, the disk is full, or the layer has what EROFS cannot hold.
        """
        path = self.path(record)
        self.begin(record)
        if (making := self._making.get(path)) is not None:
            await making.wait()
        if (failed := self._failed.get(path)) is not None:
            raise failed[1].with_traceback(None)
        return path

    def failure(self, record: LayerRecord) -> str | None:
        """Why the image of a layer could not be written the last time that was tried."""
        failed = self._failed.get(self.path(record))
        return str(failed[1]) if failed else None

    async def _write(self, path: Path, record: LayerRecord) -> None:
        job = ImageJob(str(self._index_path(record)), str(path), self._place, record.domain, record.layer_digest)
        failure: SnapshotterError | None = None
        try:
            await self._pool.run(job)
        except (SnapshotterError, OSError) as error:
            failure = PlaneError(f"the EROFS image of layer {record.layer_digest}: {error}")
        except Exception as error:
            # The nursery is the node's: a fault with one image must not end every mount.
            log.exception("layer %s: writing its EROFS image failed", record.layer_digest)
            failure = PlaneError(f"the EROFS image of layer {record.layer_digest}: internal error {error!r}")
        finally:
            self._end(path, failure)

    def _end(self, path: Path, failure: SnapshotterError | None) -> None:
        """Wake who waits; of a layer that was removed meanwhile nothing stays."""
        if all(self.path(record) != path for record in self._attached()):
            path.unlink(missing_ok=True)
        elif failure is not None:
            log.warning("%s; the layer is served through FUSE", failure)
            self._failed[path] = trio.current_time(), failure
        self._making.pop(path).set()

    def drop(self, record: LayerRecord, left: Iterable[LayerRecord]) -> None:
        """Delete the image of a layer unless one of those left has the same. Blocking."""
        path = self.path(record)
        if all(self.path(other) != path for other in left):
            self._failed.pop(path, None)
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
