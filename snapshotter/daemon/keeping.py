"""A keeper that is started beside the daemon and not by it: as a service with a control group of its own."""

import os
import sys

from snapshotter.config import Config
from snapshotter.daemon import preflight
from snapshotter.daemon.notify import Notifier
from snapshotter.keeper import client


def keep(config: Config) -> int:
    """Become the keeper of the run directory; returns, with its process, only if there is one already.

    Raises:
        PlaneError: this is not root.
        ConfigError, StoreError: the run directory cannot be used.
    """
    preflight.check_root(os.geteuid())
    # Whichever of the two comes first makes it.
    preflight.own_directory(config.run_dir, "run_dir")
    there = client.find(config.run_dir)
    if there is None:
        # It says by itself when it listens.
        os.execv(sys.executable, client.keeper_argv(config.run_dir))
    with there:
        # A service that ends before it was ready would have failed.
        Notifier().ready(f"process {there.pid} is the keeper")
        return there.pid
