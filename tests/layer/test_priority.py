"""Demand before bulk, and bulk not for ever behind it."""

import trio
import trio.testing

from snapshotter.layer.priority import LONGEST_PAUSE_S, Bandwidth, Gates, HostGate, Priority, Transfer


def test_bulk_pauses_while_demand_is_under_way_and_goes_on_after_it() -> None:
    order: list[str] = []

    async def main() -> None:
        gate = HostGate()
        demand_done = trio.Event()

        async def demand() -> None:
            async with gate.slot(Transfer(Priority.DEMAND)):
                await trio.sleep(LONGEST_PAUSE_S / 2)
                order.append("demand")
            demand_done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(demand)
            await trio.testing.wait_all_tasks_blocked()
            await gate.calm(Transfer(Priority.PREFETCH))
            order.append("bulk")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert order == ["demand", "bulk"]


def test_a_pause_ends_although_demand_goes_on() -> None:
    async def main() -> float:
        gate = HostGate()
        async with gate.slot(Transfer(Priority.DEMAND)):
            await gate.calm(Transfer(Priority.BACKGROUND))
            return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    assert trio.run(main, clock=clock) - started == LONGEST_PAUSE_S


def test_a_bulk_transfer_that_a_reader_joins_is_not_paused() -> None:
    async def main() -> float:
        gate = HostGate()
        bulk = Transfer(Priority.PREFETCH)
        async with gate.slot(Transfer(Priority.DEMAND)), trio.open_nursery() as nursery:
            nursery.start_soon(gate.calm, bulk)
            await trio.testing.wait_all_tasks_blocked()
            gate.hurry(bulk)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    assert trio.run(main, clock=clock) == started


def test_demand_finds_a_slot_while_bulk_holds_all_of_its_own() -> None:
    async def main() -> None:
        gate = HostGate()
        async with trio.open_nursery() as nursery:

            async def bulk(priority: Priority) -> None:
                async with gate.slot(Transfer(priority)):
                    await trio.sleep_forever()

            for _ in range(20):
                nursery.start_soon(bulk, Priority.PREFETCH)
                nursery.start_soon(bulk, Priority.BACKGROUND)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                async with gate.slot(Transfer(Priority.DEMAND)):
                    nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_each_host_has_a_gate_of_its_own() -> None:
    gates = Gates()
    assert gates["a"] is gates["a"]
    assert gates["a"] is not gates["b"]


def test_bandwidth_spreads_bytes_over_time() -> None:
    async def main() -> float:
        bandwidth = Bandwidth(1000)
        for _ in range(5):
            await trio.sleep(bandwidth.spend(1000))
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    assert trio.run(main, clock=clock) - started == 4.0


def test_a_bulk_transfer_that_a_reader_joins_leaves_the_queue_behind_other_bulk() -> None:
    async def main() -> float:
        gate = HostGate()
        async with trio.open_nursery() as nursery:

            async def bulk(transfer: Transfer) -> None:
                async with gate.slot(transfer):
                    if transfer is wanted:
                        nursery.cancel_scope.cancel()
                    await trio.sleep_forever()

            wanted = Transfer(Priority.PREFETCH)
            for _ in range(20):
                nursery.start_soon(bulk, Transfer(Priority.PREFETCH))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(bulk, wanted)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.deadline = trio.current_time() + 1
            gate.hurry(wanted)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    assert trio.run(main, clock=clock) == started


def test_a_transfer_stays_urgent_until_its_last_reader_has_gone() -> None:
    gate, bulk = HostGate(), Transfer(Priority.BACKGROUND)
    gate.hurry(bulk)
    gate.hurry(bulk)
    gate.relax(bulk)
    assert bulk.urgent
    gate.relax(bulk)
    assert not bulk.urgent


def test_the_bandwidth_limit_does_not_hold_up_a_reader_who_joins() -> None:
    async def main() -> float:
        gate, bulk = HostGate(), Transfer(Priority.BACKGROUND)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.rest, bulk, 100.0)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(1)
            gate.hurry(bulk)
        await gate.rest(Transfer(Priority.BACKGROUND), 2.0)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    assert trio.run(main, clock=clock) - started == 3.0
