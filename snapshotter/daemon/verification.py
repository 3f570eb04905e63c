"""Verifying the cache as a series of steps: the store calls back, a caller of the control service reads along."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from snapshotter.errors import DaemonUnreachable
from snapshotter.service.control import BATCH
from snapshotter.service.control_views import BadFileView, MissingFileView, VerifyStep
from snapshotter.store.objects import ObjectStore
from snapshotter.store.verification import Verified


class Verification:
    """One pass over the cache on a thread of its own; a reader who is slow gets fewer steps, not old ones."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._changed = threading.Condition()  # guards the four below
        self._files = 0
        self._done = self._total = 0
        self._news = False
        self._stopped = False

    def steps(self) -> Iterator[VerifyStep]:
        """Yield how far it is until it is through; closing the iterator ends the work at the next file.

        Raises:
            StoreError: the disk refused.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as thread:
            work = thread.submit(self._store.verify, self._progress)
            work.add_done_callback(lambda _: self._wake())
            try:
                while not work.done():
                    with self._changed:
                        self._changed.wait_for(lambda: self._news or work.done())
                        self._news = False
                        step = VerifyStep(self._files, self._done, self._total)
                    yield step
            finally:
                with self._changed:
                    self._stopped = True
            yield from _last_steps(work.result())

    def _progress(self, done: int, total: int) -> None:
        with self._changed:
            if self._stopped:
                raise DaemonUnreachable("the verification was broken off")
            self._files += 1
            self._done, self._total, self._news = done, total, True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _last_steps(result: Verified) -> Iterator[VerifyStep]:
    """What was found, in steps that fit a message each however much it is; the last is `done`."""
    bad = [
        BadFileView(info.domain, f"sha256:{info.digest.hex()}", "its bytes have another digest, or cannot be read")
        for info in result.bad_objects
    ]
    if result.bad_chunks:
        bad.append(BadFileView("", f"{result.bad_chunks} chunks", "chunks of files not yet whole had another digest"))
    missing = [MissingFileView(info.domain, f"sha256:{info.digest.hex()}") for info in result.missing]
    rows = max(len(bad), len(missing))
    for start in range(0, max(rows, 1), BATCH):
        end = start + BATCH
        found = tuple(bad[start:end]), tuple(missing[start:end])
        yield VerifyStep(result.objects, result.bytes, result.bytes, *found, done=end >= rows)
