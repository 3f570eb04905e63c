"""What removed snapshots leave behind: directories, links, layers. Deleted by Cleanup, and at start after a crash."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapshotter.errors import NotLazy, Reason, SnapshotterError
from snapshotter.service.directories import SnapshotDirectories
from snapshotter.service.lazy import LazyLayers
from snapshotter.store import state_snapshots as rows
from snapshotter.store.state import State
from snapshotter.store.state_snapshots import Kind, SnapshotRecord

_log = logging.getLogger(__name__)

# All layers of an image are recorded with its first Prepare; so long the others are waited for. A layer that is
# dropped too early is resolved again, so this need not cover every pull.
_UNNAMED_GRACE_NS = 600 * 10**9
# How long a Prepare waits for a layer that is just being dropped: unmapping an index and unlinking files.
_LEAVING_WAIT_S = 30.0


class LayerGuard:
    """Keeps a layer from being dropped between its `attach` and the snapshot that names it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards _wanted and _leaving
        self._wanted: dict[str, int] = {}
        self._leaving: set[str] = set()

    @contextmanager
    def wanted(self, digest: str) -> Iterator[None]:
        """The layer with this blob digest is about to be named by a snapshot.

        Raises:
            NotLazy: it is being dropped and that takes too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: digest not in self._leaving, _LEAVING_WAIT_S):
                raise NotLazy(Reason.BUSY, f"layer {digest} is still being removed after {_LEAVING_WAIT_S:.0f} s")
            self._wanted[digest] = self._wanted.get(digest, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._wanted[digest] -= 1
                if not self._wanted[digest]:
                    del self._wanted[digest]

    @contextmanager
    def leaving(self, digest: str) -> Iterator[bool]:
        """True if nobody wants the layer with this digest; until the block ends nobody can."""
        with self._changed:
            free = digest not in self._wanted and digest not in self._leaving
            if free:
                self._leaving.add(digest)
        try:
            yield free
        finally:
            if free:
                with self._changed:
                    self._leaving.discard(digest)
                    self._changed.notify_all()


class Cleanup:
    """Deletes what no snapshot names any more."""

    def __init__(
        self,
        state: State,
        directories: SnapshotDirectories,
        lazy: LazyLayers,
        guard: LayerGuard,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._state = state
        self._directories = directories
        self._lazy = lazy
        self._guard = guard
        self._clock_ns = clock_ns
        self._running = threading.Lock()  # guards the directories set aside: two would delete the same names

    def run(self) -> None:
        """Delete directories without a snapshot, links of removed snapshots, and layers that no snapshot names.

        A layer that cannot be dropped is logged and left for the next time.

        Raises:
            StoreError: a directory could not be deleted.
        """
        with self._running:
            with self._state.write() as db:
                live = rows.identifiers(db)
                below = rows.next_identifier(db)
                self._directories.set_aside_all_but(live)
            self._lazy.forget_snapshots(live, below)
            self._release_layers()
            self._directories.delete_set_aside()

    def recover(self) -> None:
        """`run`, at start; and say which snapshots have lost their directory. Raises: as `run`."""
        with self._state.read() as db:
            everything = rows.everything(db)
        for record in everything:
            if _needs_directory(record) and not self._directories.exists(record.id):
                _log.error(
                    "snapshot %r: %s is missing, the file system lost it; remove %s and create it again",
                    record.key,
                    self._directories.fs(record.id),
                    "the image" if record.kind is Kind.COMMITTED else "the container",
                )
        self.run()

    def _release_layers(self) -> None:
        for layer in self._state.unnamed_layers(self._clock_ns() - _UNNAMED_GRACE_NS):
            with self._guard.leaving(layer.layer_digest) as free:
                # Asked again inside: a Prepare may have named it and be through since the list was read.
                if not free or layer.number in self._state.layers_in_use():
                    continue
                try:
                    self._lazy.release(layer.number)
                except (SnapshotterError, OSError) as error:  # a TimeoutError is an OSError
                    _log.warning("layer %d (%s) could not be dropped: %s", layer.number, layer.layer_digest, error)


def _needs_directory(record: SnapshotRecord) -> bool:
    if record.kind is Kind.VIEW:
        return not record.parent
    return record.layer_number is None
