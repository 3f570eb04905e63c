"""What pyfuse3 is given instead of trio, and that it takes it."""

import json
import os
import subprocess
import sys

import pytest
import trio
import trio.testing

from snapshotter.plane.fuse.trio_shim import GuardedTrio, _ReadTurn

HANDSHAKE = """
import json, socket, struct, sys
import pyfuse3, trio
from snapshotter.plane.fuse import trio_shim

used = []
class Recorder(trio_shim.GuardedTrio):
    def __getattribute__(self, name):
        used.append(name)
        return super().__getattribute__(name)

trio_shim.GuardedTrio = Recorder
trio_shim.install()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pyfuse3.init(pyfuse3.Operations(), f"/dev/fd/{theirs.detach()}", set())
body = struct.pack("<IIIII44x", 7, 45, 131072, 0x73fffffb, 0)
ours.send(struct.pack("<IIQQIIIHH", 40 + len(body), 26, 2, 0, 0, 0, 0, 0, 0) + body)

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(ours)
        nursery.cancel_scope.cancel()

trio.run(main)
print(json.dumps([len(ours.recv(4096)), sorted(set(used))]))
"""


def test_pyfuse3_still_looks_its_trio_up_as_a_module_attribute() -> None:
    """pyfuse3 keeps its session in globals, so this runs in a process of its own."""
    done = subprocess.run([sys.executable, "-c", HANDSHAKE], capture_output=True, timeout=90, check=True)
    length, used = json.loads(done.stdout)
    assert length == 80
    assert {"lowlevel", "open_nursery", "Lock"} <= set(used)


def test_wait_returns_only_when_there_is_something_to_read() -> None:
    async def main() -> list[str]:
        r, w = os.pipe()
        seen = []

        async def waiter() -> None:
            await GuardedTrio().lowlevel.wait_readable(r)
            seen.append("readable")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            seen.append("written")
            os.write(w, b"x")
        os.close(r)
        os.close(w)
        return seen

    assert trio.run(main) == ["written", "readable"]


def test_wait_that_finds_nothing_after_all_waits_again() -> None:
    async def main() -> list[str]:
        r, w = os.pipe()
        os.set_blocking(r, False)
        seen = []
        shim = GuardedTrio()

        async def waiter() -> None:
            await shim.lowlevel.wait_readable(r)
            seen.append(os.read(r, 1).decode())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            os.write(w, b"x")
            # Gone before the waiter runs: as when the process behind a request is killed.
            os.read(r, 1)
            await trio.testing.wait_all_tasks_blocked()
            seen.append("waits")
            os.write(w, b"y")
        os.close(r)
        os.close(w)
        return seen

    assert trio.run(main) == ["waits", "y"]


def test_session_task_survives_a_request_that_vanished() -> None:
    async def main() -> int:
        runs = 0

        async def session() -> None:
            nonlocal runs
            runs += 1
            await trio.lowlevel.checkpoint()
            if runs < 3:
                raise BlockingIOError(11, "fuse_session_receive_buf failed")

        async with GuardedTrio().open_nursery() as nursery:
            nursery.start_soon(session, name="pyfuse-01")
        return runs

    assert trio.run(main) == 3


def test_other_errors_of_a_session_task_are_not_swallowed() -> None:
    async def main() -> None:
        async def session() -> None:
            raise OSError(19, "No such device")

        async with GuardedTrio().open_nursery() as nursery:
            nursery.start_soon(session)

    with pytest.raises(ExceptionGroup):
        trio.run(main)


def test_one_task_at_a_time_has_the_turn_to_read_and_all_get_it() -> None:
    async def main() -> tuple[int, int]:
        turn, inside, most, done = _ReadTurn(), 0, 0, 0

        async def reader() -> None:
            nonlocal inside, most, done
            for _ in range(20):
                async with turn:
                    inside += 1
                    most = max(most, inside)
                    await trio.lowlevel.checkpoint()
                    inside -= 1
            done += 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(reader)
        return most, done

    assert trio.run(main) == (1, 10)


def test_cancelled_waiter_does_not_take_the_turn_with_it() -> None:
    async def main() -> str:
        turn = _ReadTurn()

        async def waiter(scope: trio.CancelScope) -> None:
            with scope:
                async with turn:
                    raise AssertionError("the turn was taken")

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            async with turn:
                nursery.start_soon(waiter, scope)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        with trio.fail_after(30):
            async with turn:
                return "free"

    assert trio.run(main) == "free"
