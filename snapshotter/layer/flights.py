"""One fetch for each member, whoever asks: readers join a flight that is under way, or start it.

A flight is a task of its own, so that a reader whose deadline passes, or who is killed, cancels nobody else.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from snapshotter.errors import FormatError, RegistryUnreachable, SnapshotterError, StoreError
from snapshotter.layer.counters import Counters
from snapshotter.layer.courier import Courier
from snapshotter.layer.memory_chunks import MemoryChunks
from snapshotter.layer.origin import Origin
from snapshotter.layer.outage import OutagePolicy, Pauses
from snapshotter.layer.priority import HostGate, Priority, Transfer
from snapshotter.layer.sink import ChunkKey, Landed

log = logging.getLogger(__name__)

MEMORY_FLIGHTS = 4
"""Flights that may hold chunks in memory at one time while the disk takes nothing."""

LOST_FOR_S = 1.0
"""So long a member stays lost after an outage was waited out. When reading ahead fails the kernel asks for the page once
more, at once, and a process cannot be killed in that second wait."""


@dataclass(slots=True)
class Flight:
    """One member on its way. `memory` holds its chunks if the disk took nothing."""

    transfer: Transfer
    gate: HostGate
    landed: trio.Event = field(default_factory=trio.Event)
    error: SnapshotterError | None = None
    memory: dict[ChunkKey, bytes] = field(default_factory=dict)

    async def wait(self, priority: Priority) -> None:
        """Return when the member has landed. Raises what it ended with."""
        if priority is Priority.DEMAND:
            self.gate.hurry(self.transfer)
        try:
            await self.landed.wait()
        finally:
            if priority is Priority.DEMAND:
                self.gate.relax(self.transfer)
        if self.error is not None:
            raise self.error.with_traceback(None)


class Flights:
    """All flights of the node. Used on the trio thread only."""

    def __init__(
        self, nursery: trio.Nursery, courier: Courier, counters: Counters, outage: OutagePolicy, demand_window: int
    ) -> None:
        self._nursery = nursery
        self._courier = courier
        self._counters = counters
        self._outage = outage
        self._demand_window = demand_window
        self._flying: dict[tuple[int, int], Flight] = {}
        self._lost: dict[tuple[int, int], tuple[float, RegistryUnreachable]] = {}
        self._memory = trio.CapacityLimiter(MEMORY_FLIGHTS)
        self.kept = MemoryChunks()

    def window(self, origin: Origin) -> int:
        """Bytes of blob that one demand read of this layer asks for."""
        return self._courier.window(origin.host, self._demand_window)

    def find(self, origin: Origin, member: int) -> Flight | None:
        """The flight that brings a member at this moment, if there is one."""
        return self._flying.get((origin.number, member))

    def refuse_lost(self, origin: Origin, members: Sequence[int]) -> None:
        """Raise what a member ended with if an outage was waited out for it just now and nothing flies to bring it."""
        for member in members:
            until, error = self._lost.get((origin.number, member), (0.0, None))
            if error is not None and trio.current_time() < until and self.find(origin, member) is None:
                raise error.with_traceback(None)

    def is_refused(self, origin: Origin, member: int) -> bool:
        """Whether the node's disk would not take a member at this moment."""
        return self._courier.refused(origin, member)

    def announce(self, origin: Origin, member: int, transfer: Transfer) -> Flight:
        """Note that `transfer` brings a member, so that readers can join it."""
        flight = Flight(transfer, self._courier.gates[origin.host])
        self._flying[origin.number, member] = flight
        return flight

    def land(
        self,
        origin: Origin,
        member: int,
        transfer: Transfer,
        error: SnapshotterError | None,
        memory: dict[ChunkKey, bytes] | None = None,
    ) -> None:
        """A member that `transfer` brings has arrived or failed: wake those who wait for it."""
        if self._brings(origin, member, transfer):
            flight = self._flying.pop((origin.number, member))
            flight.error = error
            flight.memory = memory or {}
            self.kept.keep(origin.number, flight.memory)
            flight.landed.set()

    def _brings(self, origin: Origin, member: int, transfer: Transfer) -> bool:
        """Whether a member is still on its way by `transfer`; another may fly since it landed."""
        flight = self.find(origin, member)
        return flight is not None and flight.transfer is transfer

    def start(self, origin: Origin, members: Sequence[int], priority: Priority) -> list[Flight]:
        """Start one fetch for a run of neighbouring members, none of which is flying; returns a flight for each."""
        transfer = Transfer(priority)
        flights = [self.announce(origin, member, transfer) for member in members]
        self._nursery.start_soon(self._fly, origin, list(members), transfer)
        return flights

    async def _fly(self, origin: Origin, members: list[int], transfer: Transfer) -> None:
        error: SnapshotterError = RegistryUnreachable("the daemon stops; the fetch was given up")
        began = trio.current_time()
        try:
            await self._bring(origin, members, transfer)
        except RegistryUnreachable as failure:
            error = failure
            if transfer.priority is Priority.DEMAND and trio.current_time() - began >= LOST_FOR_S:
                self._lose(origin, [member for member in members if self._brings(origin, member, transfer)], failure)
        except SnapshotterError as failure:
            error = failure
        except Exception as failure:
            # The nursery is the node's: a fault in one fetch must not end every mount.
            log.exception("layer %s: fetching failed", origin.layer_digest)
            error = SnapshotterError(f"internal error while fetching: {failure!r}")
        finally:
            for member in members:
                self.land(origin, member, transfer, error)

    def _lose(self, origin: Origin, members: Sequence[int], error: RegistryUnreachable) -> None:
        now = trio.current_time()
        self._lost = {key: entry for key, entry in self._lost.items() if now < entry[0]}
        self._lost |= {(origin.number, member): (now + LOST_FOR_S, error) for member in members}

    async def _bring(self, origin: Origin, members: list[int], transfer: Transfer) -> None:
        """Fetch until every member has landed. Raises RegistryError when the policy gives up."""
        pauses = self._outage.pauses(origin.index.member(members[0]).blob_offset)
        fetched_twice: set[int] = set()
        # Asked first: what is fetched for a disk that does not take it has to be fetched once more.
        to_memory = transfer.priority is Priority.DEMAND and self.is_refused(origin, members[0])
        left = members
        while left:
            failures: dict[int, SnapshotterError] = {}
            try:
                if to_memory:
                    async with self._memory:
                        await self._attempt(origin, left, transfer, failures, pauses, to_memory=True)
                else:
                    await self._attempt(origin, left, transfer, failures, pauses, to_memory=False)
            except RegistryUnreachable:
                left = [member for member in left if self._brings(origin, member, transfer)]
                if transfer.priority is not Priority.DEMAND or not await pauses.another():
                    raise
                continue
            left = []
            for member, failure in failures.items():
                if isinstance(failure, StoreError) and not to_memory:
                    left.append(member)
                elif isinstance(failure, FormatError) and member not in fetched_twice:
                    fetched_twice.add(member)
                    left.append(member)
                    log.warning("layer %s: %s; fetching it once more", origin.layer_digest, failure)
                    origin.distrust()
                else:
                    self.land(origin, member, transfer, failure)
            to_memory = to_memory or any(isinstance(failure, StoreError) for failure in failures.values())

    async def _attempt(
        self,
        origin: Origin,
        members: list[int],
        transfer: Transfer,
        failures: dict[int, SnapshotterError],
        pauses: Pauses,
        *,
        to_memory: bool,
    ) -> None:
        def landed(one: Landed) -> None:
            if one.error is None:
                self._counters.served_from_memory += bool(one.memory)
                self.land(origin, one.member, transfer, None, one.memory)
                return
            failures[one.member] = one.error
            if isinstance(one.error, FormatError):
                self._counters.verification_failures += 1

        host = origin.host
        with pauses.attempt() as attempt:
            await self._courier.carry(
                origin,
                members,
                transfer,
                landed,
                arriving=pauses.progressed,
                to_memory=to_memory,
                patient=transfer.priority is Priority.DEMAND and self._outage.wait_s > 0,
            )
        if attempt.cancelled_caught:
            error = RegistryUnreachable(
                f"registry {host} sent nothing for as long as a read waits (fetch.on_outage); "
                "check that the node reaches the registry"
            )
            self._counters.hosts[host] = str(error)
            self._counters.of_host(host).failures += 1
            raise error
