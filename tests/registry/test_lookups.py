"""A name server that does not answer costs those who asked it, and nobody else."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from snapshotter.config import RegistryConfig
from snapshotter.registry.client import Registry
from snapshotter.registry.lookups import SharedLookups
from snapshotter.registry.reference import parse_reference

MANY = 200
ADDRESS = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 5000))]


class NameServer:
    """Answers every name but `dead`, for which it takes until the end of the test."""

    def __init__(self) -> None:
        self.asked: Counter[bytes] = Counter()
        self.ended = threading.Event()

    def __call__(self, host: bytes, *_: object) -> list[Any]:
        self.asked[host] += 1
        if host.startswith(b"dead"):
            self.ended.wait()
        if not host.startswith(b"known"):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return ADDRESS


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.ended.set()


def test_many_who_ask_for_one_name_cost_one_lookup_and_get_one_answer(server: NameServer) -> None:
    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(SharedLookups(server))
        answers = []

        async def ask() -> None:
            answers.append(await trio.socket.getaddrinfo("known.test", 5000, type=socket.SOCK_STREAM))

        async with trio.open_nursery() as nursery:
            for _ in range(MANY):
                nursery.start_soon(ask)
        assert answers == [ADDRESS] * MANY
        assert server.asked == {b"known.test": 1}
        # Nothing is kept: the next one asks anew.
        await ask()
        assert server.asked == {b"known.test": 2}

    trio.run(main)


def test_each_who_asked_is_told_that_a_name_is_not_known(server: NameServer) -> None:
    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(SharedLookups(server))

        async def ask() -> None:
            with pytest.raises(socket.gaierror, match="not known"):
                await trio.socket.getaddrinfo("absent.test", 5000)

        async with trio.open_nursery() as nursery:
            for _ in range(MANY):
                nursery.start_soon(ask)

    trio.run(main)


def test_lookups_that_hang_keep_no_thread_from_disks_and_no_name_from_others(server: NameServer) -> None:
    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(SharedLookups(server))

        async def ask(number: int) -> None:
            await trio.socket.getaddrinfo(f"dead-{number}.test", 5000)

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(ask, number)
            with trio.fail_after(30):
                assert await trio.socket.getaddrinfo("known.test", 5000) == ADDRESS
                assert await trio.to_thread.run_sync(lambda: "a read of the disk") == "a read of the disk"
            # Who gives up does not wait for the name server.
            nursery.cancel_scope.cancel()
        assert await trio.to_thread.run_sync(lambda: "a read of the disk") == "a read of the disk"

    trio.run(main)


def test_reads_of_a_registry_whose_name_server_is_dead_take_one_thread(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "dead.test")

    async def main() -> None:
        async with Registry(RegistryConfig()) as registry, trio.open_nursery() as nursery:
            of_registry = trio.socket.set_custom_hostname_resolver(SharedLookups(server))
            assert isinstance(of_registry, SharedLookups)
            blob = registry.blob(parse_reference("dead.test/a/b:1"), f"sha256:{'0' * 64}", 1000)

            async def read() -> None:
                async with blob.open_range(0, 10) as body:
                    await anext(body)

            for _ in range(MANY):
                nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.1)
            while not server.asked:  # noqa: ASYNC110 (a thread of its own asks)
                await trio.sleep(0.01)
            with trio.fail_after(30):
                assert await trio.to_thread.run_sync(lambda: "a read of the disk") == "a read of the disk"
            assert server.asked == {b"dead.test": 1}
            nursery.cancel_scope.cancel()

    trio.run(main)
