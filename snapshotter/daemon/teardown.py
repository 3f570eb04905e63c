"""Taking everything away that the daemon mounted. Files stay: containerd remembers the snapshots in them."""

import logging
import os
from contextlib import ExitStack
from pathlib import Path

from snapshotter.config import Config
from snapshotter.daemon.preflight import lock_run_dir
from snapshotter.daemon.users import find_users
from snapshotter.errors import KeeperGone
from snapshotter.keeper import client
from snapshotter.plane.erofs.backing import EROFS_MOUNTS, Backing
from snapshotter.plane.erofs.mounting import ErofsMounts
from snapshotter.plane.erofs.probing import clear_trial
from snapshotter.plane.fuse.kernel import detach_ours
from snapshotter.plane.mounts import mounts_below
from snapshotter.service.control_views import TeardownView
from snapshotter.store.lock import RootLock

log = logging.getLogger(__name__)


def teardown(run_dir: Path, root: Path, *, force: bool) -> TeardownView:
    """Unmount the layers and remove the links to them, unless somebody stands on them and not `force`.

    Mounts are detached, never aborted: who holds a file of a layer keeps it until the daemon ends.

    Raises:
        PlaneError: the kernel refused, or a file system that is not ours is mounted there.
    """
    users = find_users(run_dir, root)
    if users and not force:
        return TeardownView(users, (), done=False)
    for user in users:
        log.warning("layers are detached under %s (%s)", user.name, user.mountpoint)
    mountpoint = run_dir / "fuse"
    unmounted = (str(mountpoint),) * detach_ours(mountpoint)
    clear_trial(root, run_dir)
    directory = run_dir / EROFS_MOUNTS
    if directory.is_dir():
        unmounted += tuple(str(directory / os.fsdecode(name)) for name in sorted(mounts_below(directory)))
        ErofsMounts(directory, Backing.FILE).drop_all()
    links = run_dir / "l"
    if links.is_dir():
        for link in links.iterdir():
            if link.is_symlink():
                link.unlink(missing_ok=True)
    return TeardownView(users, unmounted, done=True)


def teardown_stopped(config: Config, *, force: bool) -> TeardownView:
    """Do the same where no daemon runs.

    Raises:
        StoreLocked: one runs after all.
        PlaneError: as `teardown`, or the keeper serves a daemon.
    """
    with ExitStack() as undo:
        if config.root.is_dir():
            undo.enter_context(RootLock(config.root))
        if config.run_dir.is_dir():
            # A daemon with another root may serve it.
            undo.enter_context(lock_run_dir(config))
        result = teardown(config.run_dir, config.root, force=force)
        if result.done:
            _end_keeper(config.run_dir)
            if config.socket.is_socket():
                config.socket.unlink(missing_ok=True)
        return result


def _end_keeper(run_dir: Path) -> None:
    """Have the keeper forget what it keeps: containers that are left get errors, where they would wait for a daemon."""
    keeper = client.find(run_dir)
    if keeper is None:
        return
    with keeper:
        try:
            # As the daemon: a keeper ends with the last one that has nothing to be kept.
            kept = keeper.hello()
            if kept is not None:
                os.close(kept.fd)
            keeper.drop()
        except KeeperGone:
            # It ended because the last mount is gone.
            pass
