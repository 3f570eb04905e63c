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


DEMAND_STREAMS = 256
"""Demand reads of one host under way at a time. One that hangs costs a socket; few would let one blob that hangs stop
the reads of every other layer of its registry."""

PREFETCH_STREAMS = 3
BACKGROUND_STREAMS = 1
LONGEST_PAUSE_S = 1.0


class Transfer:
    """One stream from one host; `readers` wait for what it brings at this moment."""

    __slots__ = ("priority", "queued", "readers")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.readers = 0
        self.queued: trio.CancelScope | None = None
        """Around its wait for a bulk slot."""

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for its bytes."""
        return self.priority is Priority.DEMAND or self.readers > 0


class HostGate:
    """The slots of one host. Used on the trio thread only."""

    def __init__(self) -> None:
        self._slots = {
            Priority.DEMAND: trio.CapacityLimiter(DEMAND_STREAMS),
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
        slots: trio.CapacityLimiter | None = None
        try:
            slots = await self._acquired(transfer)
            yield
        finally:
            if slots is not None:
                slots.release_on_behalf_of(transfer)
            if demand:
                self._demand_waiting -= 1
                if not self._demand_waiting:
                    self._lot.unpark_all()

    async def _acquired(self, transfer: Transfer) -> trio.CapacityLimiter:
        """The slots of which `transfer` has one now. One that becomes urgent in the queue goes over to demand's."""
        if not transfer.urgent:
            slots = self._slots[transfer.priority]
            with trio.CancelScope() as queued:
                transfer.queued = queued
                try:
                    await slots.acquire_on_behalf_of(transfer)
                    return slots
                finally:
                    transfer.queued = None
        slots = self._slots[Priority.DEMAND]
        await slots.acquire_on_behalf_of(transfer)
        return slots

    def under_way(self, priority: Priority) -> int:
        """How many streams have one of the slots of a priority."""
        return self._slots[priority].borrowed_tokens

    def hurry(self, transfer: Transfer) -> None:
        """One more reader waits for this transfer: it neither queues behind bulk nor pauses until `relax`."""
        transfer.readers += 1
        if transfer.queued is not None:
            transfer.queued.cancel()
        self._lot.unpark_all()

    @staticmethod
    def relax(transfer: Transfer) -> None:
        """One reader less waits for this transfer."""
        transfer.readers -= 1

    async def rest(self, transfer: Transfer, pause_s: float) -> None:
        """Wait `pause_s` seconds, or until the transfer is urgent."""
        with trio.move_on_after(pause_s):
            while pause_s > 0 and not transfer.urgent:
                await self._lot.park()

    async def calm(self, transfer: Transfer) -> None:
        """Wait while demand is under way on this host, `LONGEST_PAUSE_S` at most; urgent transfers never wait."""
        if transfer.urgent or not self._demand_waiting:
            return
        with trio.move_on_after(LONGEST_PAUSE_S):
            while self._demand_waiting and not transfer.urgent:
                await self._lot.park()


class Gates:
    """One gate for each host, made when first asked for."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostGate] = {}

    def __getitem__(self, host: str) -> HostGate:
        gate = self._hosts.get(host)
        if gate is None:
            gate = self._hosts[host] = HostGate()
        return gate

    def under_way(self) -> dict[Priority, int]:
        """Streams that have a slot, over all hosts, by whose slot it is: one that somebody waits for has demand's."""
        return {priority: sum(gate.under_way(priority) for gate in self._hosts.values()) for priority in Priority}


class Bandwidth:
    """A limit in bytes per second for background transfers; 0 means none."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    def spend(self, size: int) -> float:
        """Note `size` bytes; returns the seconds to wait before the next are asked for."""
        if not self._rate:
            return 0.0
        now = trio.current_time()
        start = max(now, self._free_at)
        self._free_at = start + size / self._rate
        return start - now
