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
    """Create `path` for root alone, or check that an existing one is root's and closed to others' writing.

    Raises:
        ConfigError: it belongs to another user, or others may write in it.
        StoreError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
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


def lock_run_dir(config: Config) -> RootLock:
    """Return the lock on the run directory: two daemons with two roots would detach each other's mounts.

    Raises:
        StoreLocked: another instance uses it.
    """
    return RootLock(config.run_dir, "run")
