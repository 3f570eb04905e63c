"""A second daemon that waits, with everything loaded, for the first one to end.

It holds nothing of the mount and opens nothing below it. What costs a fresh start most, the interpreter and its modules, is
paid before: readers wait some milliseconds for it instead of some hundred.
"""

# ruff: noqa: F401, PLC0415 (modules are imported to have them)

import fcntl
import gc
import logging
import os
from pathlib import Path
from typing import Final

from snapshotter.config import Config
from snapshotter.daemon.notify import Notifier
from snapshotter.errors import StoreError

TORN_DOWN_NAME: Final = "torn-down"
"""A file in the run directory, from a teardown until the next start."""

log = logging.getLogger(__name__)


def stand_by(config: Config, notifier: Notifier) -> bool:
    """Return when no other daemon has the root directory; False if the last one had been torn down, and none shall follow.

    SIGTERM and SIGINT end the process meanwhile.

    Raises:
        StoreError: the lock file cannot be opened.
    """
    try:
        fd = os.open(config.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreError(f"root directory {config.root}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _load()
            log.info("standing by for the daemon that has %s", config.root)
            notifier.ready("standing by")
            fcntl.flock(fd, fcntl.LOCK_EX)
            if (config.run_dir / TORN_DOWN_NAME).exists():
                log.info("the daemon was torn down; nothing is left to stand by for")
                return False
            log.info("the daemon has ended; taking over")
        return True
    finally:
        os.close(fd)


def dismiss(run_dir: Path) -> None:
    """Let a daemon that stands by for this one end, too. Before this one gives its locks up."""
    try:
        (run_dir / TORN_DOWN_NAME).touch(mode=0o600)
    except OSError as error:
        log.warning("a daemon that stands by would take over: %s", error)


def expect_followers(run_dir: Path) -> None:
    """The opposite, once this process has the locks. Raises StoreError."""
    mark = run_dir / TORN_DOWN_NAME
    try:
        mark.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{mark}: {error.strerror or error}") from error


def _load() -> None:
    """Import what a daemon imports in the course of its start."""
    import snapshotter.containerd.content
    import snapshotter.daemon.monitoring
    import snapshotter.daemon.node
    import snapshotter.daemon.numbers
    import snapshotter.daemon.sampling
    import snapshotter.daemon.services
    import snapshotter.registry.client
    import snapshotter.service.bridge

    # What is here stays: no collection need look at it again.
    gc.collect()
    gc.freeze()
