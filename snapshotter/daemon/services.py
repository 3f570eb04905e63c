"""The gRPC side put together: containerd's service, the control service, health, on one socket."""

import logging
from dataclasses import dataclass

from snapshotter.config import Config
from snapshotter.errors import SnapshotterError
from snapshotter.service.cleanup import Cleanup, LayerGuard
from snapshotter.service.control import ControlServicer, NodeView
from snapshotter.service.directories import SnapshotDirectories
from snapshotter.service.lazy import LazyLayers
from snapshotter.service.pulls import PullLog
from snapshotter.service.remote import RemotePrepare
from snapshotter.service.server import SocketServer, build_server
from snapshotter.service.servicer import SnapshotsServicer
from snapshotter.service.snapshots import Snapshots
from snapshotter.service.timing import CallTimer, Observe
from snapshotter.store.state import State

THREADS_BESIDE_PULLS = 8
"""For calls that never wait for the network: with these and as many as pulls may take, Commit always finds one."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """A bound server that answers nobody before `start`."""

    server: SocketServer
    pulls: PullLog

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones end within `grace_s`, and say what is to be said of open pulls."""
        self.server.stop(grace_s)
        self.pulls.close()


def build_services(
    config: Config,
    state: State,
    directories: SnapshotDirectories,
    lazy: LazyLayers,
    node: NodeView,
    observe: Observe | None = None,
) -> Services:
    """Tidy up what a crash left, then bind the socket. Needs no network. `observe` is told how long each call took.

    Raises:
        StoreLocked: somebody answers on the socket.
        ConfigError: the address is taken by something else.
        StoreError: the directories or the socket cannot be made.
    """
    guard = LayerGuard()
    cleanup = Cleanup(state, directories, lazy, guard)
    try:
        cleanup.recover()
    except SnapshotterError as error:
        log.error("tidying up after the last run failed, the next Cleanup tries again: %s", error)  # noqa: TRY400
    snapshots = Snapshots(state, directories, lazy)
    pulls = PullLog()
    waiting = config.lazy.max_waiting_pulls
    remote = RemotePrepare(
        snapshots, state, lazy, guard, pulls, max_waiting=waiting, timeout_s=config.lazy.resolve_timeout_s
    )
    registrations = [SnapshotsServicer(snapshots, remote, cleanup).register, ControlServicer(node).register]
    timers = [CallTimer(observe)] if observe else []
    server = build_server(config.socket, registrations, 2 * waiting + THREADS_BESIDE_PULLS, timers)
    return Services(server, pulls)
