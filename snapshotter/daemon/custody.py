"""Where the FUSE connection is kept besides this process: with the keeper, and with systemd where that holds descriptors.

Both hold the same open descriptor and the same record. The keeper is asked first; it alone knows when to give up.
"""

import json
import logging
import os
import threading
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
from snapshotter.keeper.program import abort
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
    """Gives the connection of an earlier daemon, and keeps ours for a later one. Blocking; from any thread."""

    def __init__(self, config: Config, notifier: Notifier, stored: Mapping[str, int]) -> None:
        """`stored` is what the service manager held, by name; the descriptors are closed by `take`."""
        self._run_dir = config.run_dir
        self._abort_after_s = config.take_over.abort_after_s
        self._resend = config.take_over.resend
        self._notifier = notifier
        # Guards the talk with the keeper: who sees an answer come that another thread waits for must not take it for its end.
        self._lock = threading.RLock()
        self._keeper: client.Keeper | None = None
        self._kept: tuple[int, SessionRecord] | None = None
        self._serving = False
        self._inherited = dict(stored)
        self._memory = -1  # the record that the service manager holds beside the connection; -1: it holds none

    @property
    def keeper_pid(self) -> int:
        """The keeper's process; 0: there is none."""
        keeper = self._keeper
        return keeper.pid if keeper else 0

    @property
    def device(self) -> str:
        """`major:minor` of the mount that is kept; empty: none is."""
        kept = self._kept
        return kept[1].device if kept else ""

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
            self.drop()
            give_up(kept.fd, _device_of(kept.record))
            os.close(kept.fd)
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
        with self._lock:
            self._kept = fd, record
            try:
                self._put()
            except PlaneError as error:
                # It has just ended: no reason to give the connection up.
                if self._serving:
                    log.warning("%s", error)  # `watch` sees it too, and must not have its descriptor closed under it
                else:
                    self._replace()
            self._store(fd, record)

    def _store(self, fd: int, record: SessionRecord) -> None:
        """Have the service manager hold both."""
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
        with self._lock:
            self._serving = True
            try:
                if self._keeper is not None:
                    self._keeper.ready()
            except PlaneError as error:
                # `watch` starts another, which learns it then.
                log.warning("%s", error)

    def drop(self) -> None:
        """Nobody shall take the connection over: its readers get errors from now on, whoever holds a copy."""
        with self._lock:
            kept, self._kept = self._kept, None
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
        if kept is not None:
            give_up(kept[0], kept[1].device)

    async def watch(self) -> None:
        """Have another keeper whenever ours is gone."""
        while True:
            if self._keeper is not None:
                await trio.lowlevel.wait_readable(self._keeper)
            try:
                await trio.to_thread.run_sync(self._replace_if_gone)
            except PlaneError as error:
                log.error("no daemon could take over now: %s", error)  # noqa: TRY400 (expected)
                await trio.sleep(RETRY_S)

    def _replace_if_gone(self) -> None:
        """Raises PlaneError."""
        with self._lock:
            if self._keeper is not None and not self._keeper.is_gone():
                return
            log.warning("the keeper is gone; another is started")
            self._replace()

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


def give_up(fd: int, device: str) -> None:
    """End a connection for its readers: a copy of it may be in a store that is not ours, and would keep it alive."""
    minor = device.partition(":")[2]
    # One that has ended has given its number back, which may be another's by now.
    if minor.isdecimal() and is_alive(fd):
        abort(int(minor))


def _device_of(record: bytes) -> str:
    """The device in a record, also in one of a version that this one does not understand."""
    try:
        device = json.loads(record)["device"]
    except (ValueError, KeyError, TypeError):
        return ""
    return device if isinstance(device, str) else ""
