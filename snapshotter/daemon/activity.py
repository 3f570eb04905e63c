"""What goes on at this moment: who waits for which file, and what crosses the wire. Called from gRPC threads.

The trio thread is asked for a copy of what waits and no more; files, images and processes are looked up here. A wait and
the processes behind it are joined by what is waited for, the digest of the content: several reads of several layers may
stand for one file, and one for several processes.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import trio

from snapshotter.daemon.blocked import BlockedThread, Lookout
from snapshotter.daemon.waiting import Rows, WaitedFile
from snapshotter.errors import FailedPrecondition
from snapshotter.layer.priority import Priority
from snapshotter.layer.room import LayerRoom
from snapshotter.layer.waits import Wait
from snapshotter.plane.erofs.gate import DIGEST_DIGITS, Gate
from snapshotter.plane.fuse.inodes import GATE_FILE, Numbers
from snapshotter.plane.fuse.operations import LayerOperations
from snapshotter.service.bridge import Bridge
from snapshotter.service.control_views import ActivityView, HostAwayView
from snapshotter.store.state import State

WAITS_SEEN = 4096
"""Requests that are looked at, the longest: FUSE has no more in hand."""
FILES_SHOWN = 200
HOSTS_SHOWN = 20
FAILURE_LENGTH = 500
LOOP_TIMEOUT_S = 5.0
LOOK_TIMEOUT_S = 2.0
TURN_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the trio thread told, at one moment of its clock."""

    now: float
    waits: tuple[Wait, ...]
    reads: int
    lookups: int
    brought_since: Mapping[tuple[str, bytes], float]
    openers: Mapping[int, tuple[int, ...]]
    under_way: Mapping[Priority, int]


class Activity:
    """Answers `NodeView.activity`."""

    def __init__(
        self,
        room: LayerRoom,
        state: State,
        gate: Gate,
        operations: LayerOperations,
        session: int,
        bridge: Bridge,
        lookout: Lookout | None = None,
    ) -> None:
        self._room = room
        self._state = state
        self._gate = gate
        self._operations = operations
        self._numbers = Numbers(session)
        self._bridge = bridge
        self._lookout = lookout or Lookout()
        # One answer at a time, and those who wait for their turn do not keep the threads that containerd needs.
        self._lock = threading.Lock()

    @property
    def fuse_requests(self) -> Mapping[str, int]:
        """What the kernel has asked since the start, by kind of request."""
        return self._operations.requests

    def view(self, *, plane: str, started_at_ns: int, cache_used: int, cache_quota: int) -> ActivityView:
        """What goes on now.

        Raises:
            TimeoutError: the loop does not answer.
            FailedPrecondition: others ask the same all the time.
        """
        if not self._lock.acquire(timeout=TURN_TIMEOUT_S):
            raise FailedPrecondition("others ask who waits, and the answer takes long: ask again, or end other `top`s")
        try:
            seen = self._bridge.call(self._ask, timeout_s=LOOP_TIMEOUT_S)
            files = self._files(seen)
            threads = self._threads(files)
            rows = Rows(self._state, files, seen.now, exact_nodes=plane == "fuse")
            waits = tuple(rows.of(threads or ()))
        finally:
            self._lock.release()
        counters = self._room.counters
        return ActivityView(
            clock_ns=int(seen.now * 1e9),
            plane=plane,
            started_at_ns=started_at_ns,
            layers_lazy=len(self._room.shelf.all()),
            fetched_demand=counters.fetched[Priority.DEMAND],
            fetched_prefetch=counters.fetched[Priority.PREFETCH],
            fetched_background=counters.fetched[Priority.BACKGROUND],
            fetching_demand=seen.under_way[Priority.DEMAND],
            fetching_prefetch=seen.under_way[Priority.PREFETCH],
            fetching_background=seen.under_way[Priority.BACKGROUND],
            cache_used=cache_used,
            cache_quota=cache_quota,
            reads_waiting=seen.reads,
            lookups_waiting=seen.lookups,
            longest_wait_ns=max((int((seen.now - file.began) * 1e9) for file in files.values()), default=0),
            processes_seen=threads is not None,
            fuse_requests=dict(self.fuse_requests),
            away=tuple(self._away()),
            waits=waits,
        )

    async def _ask(self) -> _Seen:
        """On the trio thread: copies, whose size is bounded."""
        waits = self._room.waits
        longest = waits.longest(WAITS_SEEN)
        brought = {(wait.domain, wait.digest): self._gate.brought_since(wait.domain, wait.digest) for wait in longest}
        return _Seen(
            now=trio.current_time(),
            waits=longest,
            reads=waits.reads,
            lookups=waits.lookups,
            brought_since={key: began for key, began in brought.items() if began is not None},
            openers=self._operations.openers.all() if longest else {},
            under_way=self._room.gates.under_way(),
        )

    def _away(self) -> Iterator[HostAwayView]:
        failures = sorted((host, failure) for host, failure in self._room.counters.hosts.copy().items() if failure)
        for host, failure in failures[:HOSTS_SHOWN]:
            yield HostAwayView(host, failure[:FAILURE_LENGTH])

    def _files(self, seen: _Seen) -> dict[bytes, WaitedFile]:
        """What is waited for, by digest, with the layers that have it: first those that are asked for it."""
        files: dict[bytes, WaitedFile] = {}
        for wait in seen.waits:
            file = files.get(wait.digest)
            if file is None:
                if len(files) == FILES_SHOWN:
                    continue
                # A wait at the gate that went on in a read is one wait.
                began = seen.brought_since.get((wait.domain, wait.digest), wait.began)
                file = files[wait.digest] = WaitedFile(wait.digest, min(began, wait.began))
            file.waits.append(wait)
        layers = self._room.shelf.all()
        for file in files.values():
            asked = {wait.layer: wait.node for wait in file.waits if not wait.is_lookup}
            domains = {wait.domain for wait in file.waits}
            for layer in layers:
                node = asked.get(layer.number)
                if node is None and layer.domain in domains:
                    node = layer.index.find(file.digest)
                if node is not None:
                    file.holders.append((layer, node))
            file.holders.sort(key=lambda holder: holder[0].number not in asked)
        for inode, threads in seen.openers.items():
            file = files.get(self._content_of(inode))
            if file is not None:
                file.hinted.update(thread for thread in threads if thread)
        return files

    def _content_of(self, inode: int) -> bytes:
        """The digest of what an inode of the FUSE mount holds; empty where that is not known."""
        place = self._numbers.place(inode)
        if place is None:
            return b""
        if place.layer:
            layer = self._room.shelf.get(place.layer)
            return layer.index.digest(place.node) if layer else b""
        file = self._gate.file(place.node & ~GATE_FILE) if place.node & GATE_FILE else None
        return bytes.fromhex(file.name[:DIGEST_DIGITS]) if file else b""

    def _threads(self, files: Mapping[bytes, WaitedFile]) -> list[BlockedThread] | None:
        """The threads that wait on this node; None if they could not be looked at in time."""
        if not files:
            return []
        hinted = {thread for file in files.values() for thread in (*file.hinted, *file.askers)}
        return self._lookout.look(hinted, LOOK_TIMEOUT_S)
