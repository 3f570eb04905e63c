"""Where the FUSE connection is kept besides this process: with the keeper, and with systemd where that holds descriptors.

Both hold the same open descriptor and the same record. The keeper is asked first; it alone knows when to give up.
"""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import trio

from snapshotter.config import Config
from snapshotter.daemon import fd_store
from snapshotter.daemon.notify import Notifier
from snapshotter.errors import PlaneError
from snapshotter.keeper import client
from snapshotter.plane.fuse.kernel import MOUNT_NAME, Connection, is_alive
from snapshotter.plane.fuse.record import SessionRecord, decode_record
from snapshotter.plane.probe import PlaneChoice

RETRY_S: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inherited:
    """A FUSE connection that an earlier daemon left. `died_ns`: its end by CLOCK_MONOTONIC; None: not known."""

    connection: Connection
    record: SessionRecord
    died_ns: int | None


def with_plane(record: SessionRecord, plane: PlaneChoice) -> SessionRecord:
    """The record with the plane that runs."""
    return replace(record, plane=plane.plane, plane_reason=plane.reason, backing=plane.backing or "")


class Custody:
    """Gives the connection of an earlier daemon, and keeps ours for a later one. Blocking; one thread at a time."""

    def __init__(self, config: Config, notifier: Notifier, stored: Mapping[str, int]) -> None:
        """`stored` is what the service manager held, by name; the descriptors are closed by `take`."""
        self._run_dir = config.run_dir
        self._abort_after_s = config.take_over.abort_after_s
        self._resend = config.take_over.resend
        self._notifier = notifier
        self._keeper: client.Keeper | None = None
        self._kept: tuple[int, SessionRecord] | None = None
        self._serving = False
        self._inherited = dict(stored)
        self._memory = -1  # the record that the service manager holds beside the connection; -1: it holds none

    @property
    def keeper_pid(self) -> int:
        """The keeper's process; 0: there is none."""
        return self._keeper.pid if self._keeper else 0

    def take(self) -> Inherited | None:
        """What an earlier daemon left, if it can be served; else it is given up, which the log explains.

        Raises:
            PlaneError: another daemon has it.
        """
        try:
            self._keeper, kept = client.greet(self._run_dir)
            if kept is None:
                kept = _from_store(self._inherited)
                if kept is not None:
                    log.warning("the keeper is gone; the FUSE connection comes from the service manager's store")
            if kept is not None and self._is_stored(kept):
                self._memory = self._inherited.pop(fd_store.RECORD_NAME)
        finally:
            for fd in self._inherited.values():
                os.close(fd)
            self._inherited.clear()
        # Now: what comes between is no time that the daemon before was dead.
        died_ns = None if kept is None or kept.away_ms is None else time.monotonic_ns() - kept.away_ms * 1_000_000
        if kept is None:
            return None
        try:
            return self._checked(kept, died_ns)
        except PlaneError as error:
            log.error("the FUSE connection of the daemon before cannot be taken over: %s", error)  # noqa: TRY400 (expected)
            os.close(kept.fd)
            self.drop()
            return None

    def _is_stored(self, kept: client.Kept) -> bool:
        """Whether what the service manager held is this connection, and not one of a daemon that served in between."""
        other = _from_store(self._inherited)
        if other is None:
            return False
        os.close(other.fd)
        try:
            one, two = decode_record(kept.record), decode_record(other.record)
        except PlaneError:
            return False
        return (one.device, one.session, one.init) == (two.device, two.session, two.init)

    def _checked(self, kept: client.Kept, died_ns: int | None) -> Inherited:
        """Raises PlaneError."""
        if not is_alive(kept.fd):
            raise PlaneError("it has ended")
        record = decode_record(kept.record)
        mount_point = self._run_dir / MOUNT_NAME
        if record.mount_point != str(mount_point):
            raise PlaneError(f"it is mounted on {record.mount_point}, not on {mount_point}")
        connection = Connection(kept.fd, record.init, record.device, mount_point)
        return Inherited(connection, record, died_ns)

    def keep(self, fd: int, record: SessionRecord) -> None:
        """Have the descriptor and the record kept from now on. Raises PlaneError: by nobody."""
        self._kept = fd, record
        try:
            self._put()
        except PlaneError:
            # It has just ended: no reason to give the connection up.
            self._replace()
        if self._memory >= 0:
            # Between taking it out and putting it back this process may die.
            fd_store.rewrite_record(self._memory, record.encode())
            return
        self._memory = fd_store.record_file(record.encode())
        self._notifier.store(fd_store.RECORD_NAME, self._memory)
        self._notifier.store(fd_store.FUSE_NAME, fd)
        self._notifier.settle()

    def amend(self, plane: PlaneChoice) -> None:
        """Have another plane recorded: the configuration wants it now. Raises PlaneError."""
        if self._kept is not None:
            fd, record = self._kept
            self.keep(fd, with_plane(record, plane))

    def serving(self) -> None:
        """The kernel has its INIT reply, and is answered."""
        self._serving = True
        try:
            if self._keeper is not None:
                self._keeper.ready()
        except PlaneError as error:
            # `watch` starts another, which learns it then.
            log.warning("%s", error)

    def drop(self) -> None:
        """Nobody shall take the connection over: once this process ends its readers get errors."""
        self._kept = None
        for name in fd_store.NAMES:
            self._notifier.forget(name)
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        try:
            if self._keeper is not None:
                self._keeper.drop()
        except PlaneError as error:
            log.warning("%s", error)

    async def watch(self) -> None:
        """Have another keeper whenever ours is gone."""
        while True:
            if self._keeper is not None:
                await trio.lowlevel.wait_readable(self._keeper)
            log.warning("the keeper is gone; another is started")
            try:
                await trio.to_thread.run_sync(self._replace)
            except PlaneError as error:
                log.error("no daemon could take over now: %s", error)  # noqa: TRY400 (expected)
                await trio.sleep(RETRY_S)

    def _replace(self) -> None:
        before, self._keeper = self._keeper, None
        if before is not None:
            before.close()
        keeper, old = client.greet(self._run_dir)
        if before is not None:
            before.close()  # by now a child of ours is dead
        if old is not None:
            os.close(old.fd)
        self._keeper = keeper
        if self._kept is not None:
            self._put()
        if self._serving:
            keeper.ready()

    def _put(self) -> None:
        if self._keeper is None or self._kept is None:
            return
        fd, record = self._kept
        self._keeper.put(
            fd,
            record.encode(),
            minor=int(record.device.partition(":")[2]),
            deadline_s=self._abort_after_s,
            resend=self._resend,
            answered=self._serving,
        )


def _from_store(stored: Mapping[str, int]) -> client.Kept | None:
    """What the service manager held: a copy of the descriptor, which stays open when that of the store is closed."""
    fuse, record = stored.get(fd_store.FUSE_NAME), stored.get(fd_store.RECORD_NAME)
    if fuse is None or record is None:
        return None
    return client.Kept(os.dup(fuse), fd_store.read_record(record), None)
