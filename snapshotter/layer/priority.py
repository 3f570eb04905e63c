"""Who may use a registry host now: demand before prefetch before background.

A demand read never waits for a bulk transfer: it has connections of its own, and bulk transfers stop reading their
bodies while one is under way (the receive window closes and the link is free). A pause has an end, so that a node
that always reads something still gets filled.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum

import trio


class Priority(IntEnum):
    """Lower is sooner."""

    DEMAND = 0
    PREFETCH = 1
    BACKGROUND = 2


PREFETCH_STREAMS = 3
BACKGROUND_STREAMS = 1
LONGEST_PAUSE_S = 1.0


class Transfer:
    """One stream from one host; `urgent` is set when a reader begins to wait for a bulk stream's bytes."""

    __slots__ = ("priority", "urgent")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.urgent = priority is Priority.DEMAND


class HostGate:
    """The slots of one host. Used on the trio thread only."""

    def __init__(self, connections: int) -> None:
        demand = max(1, connections - PREFETCH_STREAMS - BACKGROUND_STREAMS)
        self._slots = {
            Priority.DEMAND: trio.CapacityLimiter(demand),
            Priority.PREFETCH: trio.CapacityLimiter(PREFETCH_STREAMS),
            Priority.BACKGROUND: trio.CapacityLimiter(BACKGROUND_STREAMS),
        }
        self._demand_waiting = 0
        self._lot = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def slot(self, transfer: Transfer) -> AsyncIterator[None]:
        """Hold one connection's worth of this host for `transfer`."""
        demand = transfer.priority is Priority.DEMAND
        if demand:
            self._demand_waiting += 1
        try:
            async with self._slots[transfer.priority]:
                yield
        finally:
            if demand:
                self._demand_waiting -= 1
                if not self._demand_waiting:
                    self._lot.unpark_all()

    def hurry(self, transfer: Transfer) -> None:
        """A reader waits for this transfer: it is not paused any more."""
        transfer.urgent = True
        self._lot.unpark_all()

    async def calm(self, transfer: Transfer) -> None:
        """Wait while demand is under way on this host, `LONGEST_PAUSE_S` at most; urgent transfers never wait."""
        if transfer.urgent or not self._demand_waiting:
            return
        with trio.move_on_after(LONGEST_PAUSE_S):
            while self._demand_waiting and not transfer.urgent:
                await self._lot.park()


class Gates:
    """One gate for each host, made when first asked for."""

    def __init__(self, connections_per_host: int) -> None:
        self._connections = connections_per_host
        self._hosts: dict[str, HostGate] = {}

    def __getitem__(self, host: str) -> HostGate:
        gate = self._hosts.get(host)
        if gate is None:
            gate = self._hosts[host] = HostGate(self._connections)
        return gate


class Bandwidth:
    """A limit in bytes per second for background transfers; 0 means none."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    async def spend(self, size: int) -> None:
        """Wait until `size` more bytes fit into the limit."""
        if not self._rate:
            return
        now = trio.current_time()
        start = max(now, self._free_at)
        self._free_at = start + size / self._rate
        await trio.sleep(start - now)
