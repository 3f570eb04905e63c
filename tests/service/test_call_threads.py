"""Clients that do not go on, speak nonsense or send too much: everybody else is answered."""

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import grpc
import pytest

from integration.harness.process import wait_for
from snapshotter.api import snapshots_pb2 as pb
from snapshotter.service.call_threads import CallThreads
from tests.service.bad_clients import SERVICE, call_frames, connected, frame, half_open, opening, unread
from tests.service.node import Client, Node

MANY = 60
"""More than a test's service has threads."""

SOON_S = 20.0
"""A starved service answers never."""

STAT = pb.StatSnapshotRequest(key="there").SerializeToString()


@pytest.fixture
def client(node: Node) -> Client:
    """Of a service with enough in it that no List fits into what a client takes without reading."""
    for number in range(4):
        node.client.prepare(f"key {number}", labels={f"label {at}": "v" * 4000 for at in range(60)})
    node.client.prepare("there")
    return node.client


def goes_on(client: Client) -> None:
    """What containerd does is answered, and soon."""
    began = time.monotonic()
    key = os.urandom(4).hex()
    client.prepare(key)
    assert client.stat(key).name == key
    assert client.mounts(key)
    client.commit(f"{key}-done", key)
    assert f"{key}-done" in client.names()
    assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("method", ["Stat", "Prepare", "List"])
def test_calls_whose_request_never_comes_keep_nobody_waiting(node: Node, client: Client, method: str) -> None:
    with half_open(node.top / "snapshotter.sock", method, MANY):
        goes_on(client)
        goes_on(client)


def test_streams_that_nobody_reads_keep_nobody_waiting(node: Node, client: Client) -> None:
    with unread(node.top / "snapshotter.sock", "List", b"", MANY):
        goes_on(client)
        goes_on(client)


def test_answers_that_nobody_reads_keep_nobody_waiting(node: Node, client: Client) -> None:
    with ExitStack() as undo:
        for _ in range(20):
            connection = undo.enter_context(connected(node.top / "snapshotter.sock"))
            connection.sendall(opening() + b"".join(call_frames(at, "Stat", STAT) for at in range(1, 400, 2)))
        goes_on(client)


def test_hundreds_of_connections_that_say_nothing_keep_nobody_waiting(node: Node, client: Client) -> None:
    with ExitStack() as undo:
        for number in range(300):
            connection = undo.enter_context(connected(node.top / "snapshotter.sock"))
            connection.sendall(b"" if number % 2 else opening())
        goes_on(client)


def _garbage(random_: random.Random) -> bytes:
    return random_.randbytes(random_.randrange(1, 4000))


def _garbled_frames(random_: random.Random) -> bytes:
    return opening() + b"".join(
        frame(random_.randrange(12), random_.randrange(256), random_.randrange(9), _garbage(random_)) for _ in range(9)
    )


def _half_frame(random_: random.Random) -> bytes:
    whole = opening() + call_frames(1, "Stat", STAT)
    return whole[: random_.randrange(len(whole))]


def _no_request(random_: random.Random) -> bytes:
    return opening() + call_frames(1, random_.choice(["Stat", "List", "Commit"]), b"\xff" * random_.randrange(1, 99))


def _huge_message(_: random.Random) -> bytes:
    # Its length says 4 GiB, its frame more than a frame may have.
    return opening() + call_frames(1, "Stat", b"")[:-5] + b"\xff" * 9 + b"\0\xff\xff\xff\xff" + b"x" * 100_000


@pytest.mark.parametrize("speech", [_garbage, _garbled_frames, _half_frame, _no_request, _huge_message])
def test_nonsense_keeps_nobody_waiting(node: Node, client: Client, speech: Callable[[random.Random], bytes]) -> None:
    with ExitStack() as undo:
        for number in range(MANY):
            connection = undo.enter_context(connected(node.top / "snapshotter.sock"))
            with suppress(OSError):  # the server may have hung up
                connection.sendall(speech(random.Random(number)))
        goes_on(client)


def test_a_request_of_another_shape_is_refused_in_words(node: Node) -> None:
    with grpc.insecure_channel(f"unix:{node.top / 'snapshotter.sock'}") as channel:
        stat = channel.unary_unary(SERVICE + "Stat", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            stat(b"\xff\xff", timeout=30)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        many = channel.stream_unary(SERVICE + "Stat", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            many(iter(()), timeout=30)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Call:
    """A call in the pool that waits for its client until it is cancelled."""

    def __init__(self, threads: CallThreads) -> None:
        self._threads = threads
        self.cancelled = threading.Event()
        self.began = threading.Event()
        self.future = threads.submit(self._run)

    def _run(self) -> None:
        with self._threads.waiting(self):  # type: ignore[arg-type]
            self.began.set()
            assert self.cancelled.wait(SOON_S)

    def cancel(self) -> None:
        self.cancelled.set()


def test_a_client_that_does_not_go_on_is_given_up_after_a_while() -> None:
    threads = CallThreads(2, patience_s=0.2, hurry_s=60)
    threads.begin()
    call = Call(threads)
    call.future.result(SOON_S)
    threads.close()
    threads.shutdown()


def test_the_call_that_waits_longest_makes_room_and_no_more_do() -> None:
    threads = CallThreads(2, patience_s=60, hurry_s=3)
    threads.begin()
    first, second = Call(threads), Call(threads)
    assert first.began.wait(SOON_S)
    assert second.began.wait(SOON_S)
    assert threads.submit(lambda: "served").result(SOON_S) == "served"
    assert first.cancelled.is_set()
    wait_for(first.future.done, "the end of the first", SOON_S)
    assert not second.cancelled.is_set()
    second.cancel()
    threads.close()
    threads.shutdown()


def test_a_client_that_reads_again_in_time_gets_everything(node: Node, client: Client) -> None:
    names = client.walk()
    first = next(names)
    goes_on(client)
    assert len({first.name, *(info.name for info in names)}) == 5
