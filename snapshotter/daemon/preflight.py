"""What must hold before the daemon starts, checked while a mistake can still be said in one sentence."""

import logging
import os
import resource
import stat
import sys
from pathlib import Path

from snapshotter.config import Config
from snapshotter.errors import ConfigError, PlaneError, StoreError
from snapshotter.store.lock import RootLock

FEW_FILES = 65536
"""Fewer descriptors than this may end while many large files grow at once."""

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter while another waits for it. With Python's own 5 ms, sweeps over ten indexes
of 100 000 entries kept the loop waiting for up to 58 ms at a time, with this for up to 17 ms."""

_OWN_MODE = 0o700
_PARENT_MODE = 0o755

log = logging.getLogger(__name__)


def check_root(uid: int) -> None:
    """Refuse another user than root.

    Raises:
        PlaneError: the daemon does not run as root.
    """
    if uid != 0:
        raise PlaneError(
            "the daemon mounts file systems for containers and must run as root: use sudo, or "
            "`systemctl start estargz-snapshotter`"
        )


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < FEW_FILES:
        log.warning("only %d files may be open at once: raise LimitNOFILE in the unit, 1048576 is usual", hard)
    return hard


def share_interpreter() -> None:
    """Let the loop take the interpreter back from busy threads soon: every FUSE request waits for it."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def own_directory(path: Path, name: str) -> None:
    """Create `path` for root alone, or see to it that an existing one is root's alone.

    Raises:
        ConfigError: it belongs to another user, others may write in it, or others may look into it and it holds what is not
            the daemon's.
        StoreError: it cannot be created.
    """
    try:
        for parent in reversed(path.parents):
            # Whatever the umask: who may write into a parent may put another directory in the place of ours.
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                parent.chmod(_PARENT_MODE)
        path.mkdir(mode=_OWN_MODE, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise StoreError(f"{name} {path}: {error.strerror}") from None
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{name} {path} belongs to user {status.st_uid}: give the daemon a directory of its own")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{name} {path} has mode {stat.S_IMODE(status.st_mode):o}, others may write in it: "
            "`chmod 700` it, or give the daemon a directory of its own"
        )
    if stat.S_IMODE(status.st_mode) != _OWN_MODE:
        _close_to_others(path, name, stat.S_IMODE(status.st_mode))


def _close_to_others(path: Path, name: str, mode: int) -> None:
    """Take everybody's rights but root's. Raises ConfigError: it is no directory of ours."""
    try:
        # Never of /run or /var/lib, which somebody may have named by mistake. A file system of its own has lost+found.
        names = {entry.name for entry in path.iterdir()} - {"lost+found"}
        if names and "lock" not in names:
            raise ConfigError(
                f"{name} {path} has mode {mode:o} and holds files that are not the daemon's: give the daemon a directory of "
                "its own, or `chmod 700` this one if nobody else needs it"
            )
        path.chmod(_OWN_MODE)
    except OSError as error:
        raise StoreError(f"{name} {path}: {error.strerror}") from None
    log.info("%s %s had mode %o: closed to other users", name, path, mode)


def lock_run_dir(config: Config, *, wait_s: float = 0.0) -> RootLock:
    """Return the lock on the run directory: two daemons with two roots would detach each other's mounts.

    `wait_s` is how long to wait for a holder that is dying.

    Raises:
        StoreLocked: another instance uses it.
    """
    return RootLock(config.run_dir, "run", wait_s=wait_s)
