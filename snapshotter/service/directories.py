"""The directories of ordinary snapshots: `<root>/snapshots/<id>/{fs,work}`.

Modes are set explicitly, whatever the umask. A failed call of the kernel leaves as `StoreError` or `StoreFull`.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter.errors import ConfigError, StoreError, StoreFull
from snapshotter.service.deep_trees import delete_tree, measure_tree
from snapshotter.store.real_directory import real_directory

_FS_MODE = 0o755
_WORK_MODE = 0o711
_PRIVATE_MODE = 0o700
# What Cleanup deletes is renamed first, so that its number is free for a Prepare whose transaction takes it again.
_GONE = "gone-"
# These would end an option, or a layer, in the option string of an overlay.
_FORBIDDEN = frozenset(',:\\"\n')


class SnapshotDirectories:
    """Everything below `<root>/snapshots`; safe from any thread, one call per snapshot at a time."""

    def __init__(self, root: Path) -> None:
        """Use, and make if needed, `root` itself as the directory of directories.

        Raises:
            ConfigError: mount options cannot carry this path.
            StoreError: it cannot be made.
        """
        bad = sorted(_FORBIDDEN.intersection(str(root)))
        if bad:
            raise ConfigError(f"directory {root}: overlay cannot take {bad[0]!r} in a path; choose another root")
        self._root = root
        with _kernel(f"make {root}"):
            real_directory(root, _PRIVATE_MODE, parents=True)
            root.chmod(_PRIVATE_MODE)

    def fs(self, snapshot_id: int) -> Path:
        """The content of a snapshot; the upper directory of an active one."""
        return self._root / str(snapshot_id) / "fs"

    def work(self, snapshot_id: int) -> Path:
        """The overlay's work directory of an active snapshot."""
        return self._root / str(snapshot_id) / "work"

    def create(self, snapshot_id: int, *, with_work: bool, owner: tuple[int, int] | None) -> None:
        """Make the directories of a new snapshot, owned by `owner` (uid, gid), on disk; a failure leaves nothing.

        Call it inside the transaction that gave the id: what already bears this number was left by a transaction
        that a crash undid.
        """
        top = self._root / str(snapshot_id)
        with _kernel(f"make {top}"):
            if os.path.lexists(top):
                self._set_aside(top.name)
            try:
                top.mkdir(mode=_PRIVATE_MODE)
                top.chmod(_PRIVATE_MODE)
                self._make(top / "fs", _FS_MODE)
                if owner is not None:
                    os.chown(top / "fs", *owner, follow_symlinks=False)
                if with_work:
                    self._make(top / "work", _WORK_MODE)
                # The transaction's own fsync takes other names along on ext4 and XFS, but not on Btrfs.
                for made in (top, self._root):
                    _fsync(made)
            except OSError:
                delete_tree(top)
                raise

    def exists(self, snapshot_id: int) -> bool:
        """Whether the content of a snapshot is there."""
        return self.fs(snapshot_id).is_dir()

    def owner(self, snapshot_id: int) -> tuple[int, int]:
        """(uid, gid) of the root directory of an ordinary snapshot."""
        with _kernel(f"look at {self.fs(snapshot_id)}"):
            found = os.stat(self.fs(snapshot_id), follow_symlinks=False)
        return found.st_uid, found.st_gid

    def usage(self, snapshot_id: int) -> tuple[int, int]:
        """(bytes, inodes) of a snapshot's content as it is on disk, files with several links once."""
        with _kernel(f"measure {self.fs(snapshot_id)}"):
            return measure_tree(self.fs(snapshot_id))

    def set_aside_all_but(self, keep: set[int]) -> None:
        """Take every directory that no snapshot in `keep` owns out of the way; `delete_set_aside` deletes them.

        Call it inside a write transaction that read `keep`: no directory may be in the making.
        """
        with _kernel(f"tidy {self._root}"):
            names = {str(snapshot_id) for snapshot_id in keep}
            for name in os.listdir(self._root):
                if name not in names and not name.startswith(_GONE):
                    self._set_aside(name)

    def delete_set_aside(self) -> None:
        """Delete what was set aside, by this process or one before it.

        Raises:
            StoreError: one of them cannot be deleted, such as one with an immutable file; the others are gone.
        """
        with _kernel(f"tidy {self._root}"):
            gone = [self._root / name for name in os.listdir(self._root) if name.startswith(_GONE)]
        failures = []
        for path in gone:
            try:
                with _kernel(f"delete {path}"):
                    delete_tree(path)
            except StoreError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _set_aside(self, name: str) -> None:
        os.rename(self._root / name, self._root / f"{_GONE}{name}-{secrets.token_hex(4)}")

    @staticmethod
    def _make(path: Path, mode: int) -> None:
        path.mkdir(mode=mode)
        path.chmod(mode)


def _fsync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _kernel(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"cannot {doing}: {error.strerror}; free space or inodes on its file system") from error
        raise StoreError(f"cannot {doing}: {error}") from error
