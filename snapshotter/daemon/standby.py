"""A second daemon that waits, with everything loaded, for the first one to end.

It holds nothing of the mount and opens nothing below it. What costs a fresh start most, the interpreter and its modules, is
paid before: readers wait some milliseconds for it instead of some hundred.
"""

import fcntl
import gc
import logging
import os
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from snapshotter.config import Config
from snapshotter.daemon import registries
from snapshotter.daemon.later import load_services
from snapshotter.daemon.notify import Notifier
from snapshotter.errors import StoreError

TORN_DOWN_NAME: Final = "torn-down"
"""A file in the run directory, from a teardown until the next start."""

log = logging.getLogger(__name__)


def stand_by(config: Config, notifier: Notifier, stored: MutableMapping[str, int]) -> bool:
    """Return when no other daemon has the root directory; False if the last one had been torn down, and none shall follow.

    SIGTERM and SIGINT end the process meanwhile. `stored` is what the service manager gave to this process: who waits gives it
    back, since a copy of a connection would keep it alive for its readers after everybody else has given it up.

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
            _let_go(notifier, stored)
            _load(metrics=bool(config.metrics.address))
            log.info("standing by for the daemon that has %s", config.root)
            notifier.ready("standing by")
            _wait(fd, notifier)
            if (config.run_dir / TORN_DOWN_NAME).exists():
                log.info("the daemon was torn down; nothing is left to stand by for")
                return False
            log.info("the daemon has ended; taking over")
        return True
    finally:
        os.close(fd)


def _let_go(notifier: Notifier, stored: MutableMapping[str, int]) -> None:
    for name, fd in stored.items():
        notifier.forget(name)
        os.close(fd)
    stored.clear()


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


def _load(*, metrics: bool) -> None:
    """Import what a daemon imports in the course of its start."""
    registries.load()
    load_services(metrics=metrics)
    # What is here stays: no collection need look at it again.
    gc.collect()
    gc.freeze()


def _wait(fd: int, notifier: Notifier) -> None:
    """Return with the lock; the service manager hears meanwhile that this process lives."""
    got = threading.Event()

    def take() -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        got.set()

    threading.Thread(target=take, daemon=True).start()
    while not got.wait(notifier.watchdog_s):
        notifier.alive()
