"""A scratch directory that is gone when its work ends; what a killed process left is removed by the next one."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshotter.image.places.disk import disk_errors

_PREFIX = "convert-"
# Only in directories of ours, and only after their lock was taken: one without it belongs to somebody else, or is new.
_MARK = ".estargz-snapshotter"


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A private directory below `parent`, locked while the block runs.

    Raises:
        NotFound, StoreError: and their subclasses.
    """
    with disk_errors(parent):
        _remove_abandoned(parent)
        path = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
    try:
        with disk_errors(path):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with disk_errors(path):
                fcntl.flock(lock, fcntl.LOCK_EX)
                (path / _MARK).touch()
            yield path
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove directories of ours that nobody holds; what cannot be removed stays."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # Elsewhere than in a directory of its own owner a mark says nothing.
                if os.fstat(lock).st_uid == os.geteuid() and (path / _MARK).exists():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
