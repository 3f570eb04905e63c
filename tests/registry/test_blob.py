"""Ranges over a real wire: what a loopback registry can do wrong, and what the reader makes of it."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.config import RegistryConfig
from snapshotter.errors import (
    BlobMissing,
    FormatError,
    IntegrityError,
    RangeUnsupported,
    RegistryDenied,
    RegistryError,
    RegistryUnreachable,
)
from snapshotter.registry.blob import PIECE_MAX, Blob
from snapshotter.registry.client import Registry
from snapshotter.registry.reference import parse_reference
from snapshotter.registry.retry import RetryPolicy
from tests.doubles.registry import LoopbackRegistry
from tests.registry.holding import READ_TIMEOUT_S, HoldingRegistry, run_hurried
from tests.registry.memory import Known

DATA = random.Random(1).randbytes(300_000)
CONFIG = RegistryConfig(read_timeout_s=READ_TIMEOUT_S, retries=2)
HASTY = RetryPolicy(CONFIG.retries, first_s=0.001, retry_after_longest_s=0.01)

pytestmark = pytest.mark.usefixtures("nobody_knocks")


def on_wire(
    script: str,
    work: Callable[[Blob], Awaitable[None]],
    *,
    data: bytes = DATA,
    elsewhere: LoopbackRegistry | None = None,
    policy: RetryPolicy = HASTY,
) -> LoopbackRegistry:
    """Run `work` on a blob whose requests go as `script` says; the stopped server has the records."""
    with HoldingRegistry() as server:
        digest = server.add_blob(data)
        server.script(f"blobs/{digest}", script)
        if elsewhere is not None:
            server.redirects["store"] = elsewhere.url
            elsewhere.add_blob(data)

        async def main() -> None:
            async with Registry(CONFIG, credentials=Known(None), policy=policy) as registry:
                await work(registry.blob(parse_reference(f"{server.host}/a/b"), digest, len(data)))

        run_hurried(main, server, *([elsewhere] if elsewhere is not None else []))
        server.requests  # noqa: B018 - waits for the last one
    return server


def reads(start: int = 100, length: int = 200_000) -> Callable[[Blob], Awaitable[None]]:
    async def work(blob: Blob) -> None:
        assert await blob.read_range(start, length) == DATA[start : start + length]

    return work


def fails(kind: type[Exception], match: str = "", start: int = 100) -> Callable[[Blob], Awaitable[None]]:
    async def work(blob: Blob) -> None:
        with pytest.raises(kind, match=match) as caught:
            await blob.read_range(start, 200_000)
        assert type(caught.value) is kind
        assert "a/b" in str(caught.value)

    return work


@pytest.mark.parametrize(
    ("script", "requests"),
    [
        ("ok", 1),
        ("503 ok", 2),
        ("500 502 ok", 3),
        ("429@1 503@1 ok", 3),
        ("close ok", 2),
        ("cut@0 ok", 2),
        ("cut@900 cut@0 ok", 3),
        ("cut@20000*9 ok", 10),
        ("stall@50000 ok", 2),
        ("hang ok", 2),
        ("short@30000*3 ok", 4),
        ("endless ok", 1),
        ("long@5 ok", 1),
        ("long@400000 ok", 1),
        ("503*2 cut@90000 429*2 ok", 6),
        ("slow@0.01 ok", 1),
        ("page ok", 2),
        ("wrong-range ok", 2),
        ("cut@20000 gzip ok", 3),
    ],
)
def test_a_fault_that_passes_is_not_seen_by_the_reader(script: str, requests: int) -> None:
    assert len(on_wire(script, reads()).requests) == requests


def test_a_broken_body_is_resumed_where_it_broke() -> None:
    server = on_wire("cut@50000 cut@70000 ok", reads(1000, 200_000))
    assert [record.range for record in server.requests] == [(1000, 200_999), (51_000, 200_999), (121_000, 200_999)]
    assert sum(record.sent for record in server.requests) == 200_000


def test_a_range_costs_its_bytes_and_says_so_explicitly() -> None:
    server = on_wire("ok", reads(len(DATA) - 10, 10))
    (record,) = server.requests
    assert (record.headers["range"], record.sent) == ("bytes=299990-299999", 10)
    assert record.headers["accept-encoding"] == "identity"
    assert "authorization" not in record.headers


@pytest.mark.parametrize(
    ("script", "kind", "match"),
    [
        ("200-to-range*", RangeUnsupported, "whole blob"),
        ("wrong-range*", RangeUnsupported, "sends bytes 101-200099 instead of 100-200099"),
        ("no-range*", RangeUnsupported, "Content-Range"),
        ("multipart*", RangeUnsupported, "Content-Range"),
        ("gzip*", RangeUnsupported, "encoded as 'gzip'"),
        ("416*", RangeUnsupported, "the manifest says 300000"),
        ("404", BlobMissing, "HTTP 404"),
        ("410", BlobMissing, "HTTP 410"),
        ("401*", RegistryDenied, "docker login"),
        ("403", RegistryDenied, "SCRIPTED"),
        ("400", RegistryError, "HTTP 400"),
        ("501", RegistryError, "HTTP 501"),
        ("204", RegistryError, "HTTP 204"),
        ("redirect-loop*", RegistryError, "in a circle"),
        ("redirect-nowhere", RegistryError, "no Location"),
        ("500*", RegistryUnreachable, "HTTP 500 .tried 3 times"),
        ("429*", RegistryUnreachable, "HTTP 429"),
        ("close*", RegistryUnreachable, "disconnected"),
        ("hang*", RegistryUnreachable, "no answer in time"),
        ("cut@10*", RegistryUnreachable, "tried 3 times"),
        ("stall@10*", RegistryUnreachable, "tried 3 times"),
        ("cut@20000 200-to-range*", RangeUnsupported, "whole blob"),
    ],
)
def test_a_fault_that_stays_is_an_error_of_its_own_kind(script: str, kind: type[RegistryError], match: str) -> None:
    on_wire(script, fails(kind, match))


def test_a_registry_that_does_not_listen_is_unreachable() -> None:
    with LoopbackRegistry() as server:
        host = server.host

    async def main() -> None:
        async with Registry(CONFIG, credentials=Known(None), policy=HASTY) as registry:
            blob = registry.blob(parse_reference(f"{host}/a/b"), "sha256:" + "0" * 64, 10)
            with pytest.raises(RegistryUnreachable, match="check that the node reaches the registry"):
                await blob.read_range(0, 10)

    trio.run(main)


def test_a_whole_answer_is_taken_when_the_whole_blob_was_asked_for() -> None:
    on_wire("200-to-range", reads(0, len(DATA)))


def test_a_whole_answer_of_another_length_is_not_the_blob() -> None:
    async def work(blob: Blob) -> None:
        blob.size += 1
        with pytest.raises(RangeUnsupported):
            await blob.read_range(0, blob.size)

    on_wire("200-to-range", work)


def test_a_blob_of_another_size_than_the_manifest_says_is_refused() -> None:
    async def work(blob: Blob) -> None:
        blob.size += 1
        with pytest.raises(RangeUnsupported, match="has 300000 bytes; the manifest says 300001"):
            await blob.read_range(0, 10)

    on_wire("ok", work)


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, len(DATA) + 1), (len(DATA), 1), (5, -1)])
def test_a_range_outside_the_blob_is_an_error_without_a_request(start: int, length: int) -> None:
    async def work(blob: Blob) -> None:
        with pytest.raises(RegistryError, match="not all among"):
            await blob.read_range(start, length)

    assert on_wire("ok", work).requests == []


def test_an_empty_range_needs_no_request() -> None:
    assert on_wire("ok", reads(7, 0)).requests == []


def test_a_connection_is_used_again_after_each_read_and_each_refusal() -> None:
    async def work(blob: Blob) -> None:
        for start in range(0, 50_000, 10_000):
            await blob.read_range(start, 10_000)
        with pytest.raises(BlobMissing):
            await blob.read_range(0, 10)
        await blob.read_range(50_000, 10_000)

    server = on_wire("ok ok short@100 503 ok ok ok 404 ok", work)
    assert (len(server.requests), server.connections) == (9, 1)


@pytest.mark.parametrize("script", ["endless", "long@4000000"])
def test_a_body_that_goes_on_is_cut_off_with_its_connection(script: str) -> None:
    async def work(blob: Blob) -> None:
        for _ in range(2):
            assert await blob.read_range(0, 100) == DATA[:100]

    assert on_wire(script, work).connections == 2


def test_a_reader_may_leave_at_any_point() -> None:
    async def work(blob: Blob) -> None:
        async with blob.open_range(0, len(DATA)):
            pass
        async with blob.open_range(0, len(DATA)) as pieces:
            await anext(pieces)
        with trio.move_on_after(0.05):
            async with blob.open_range(0, len(DATA)) as pieces:
                async for _ in pieces:
                    await trio.sleep_forever()
        with pytest.raises(ZeroDivisionError):
            async with blob.open_range(0, len(DATA)) as pieces:
                async for _ in pieces:
                    raise ZeroDivisionError
        assert await blob.read_range(0, len(DATA)) == DATA

    on_wire("ok", work)


@pytest.mark.parametrize("script", ["hang", "stall@100"])
def test_a_reader_may_be_cancelled_while_it_waits(script: str) -> None:
    async def work(blob: Blob) -> None:
        with trio.move_on_after(0.05) as scope:
            await blob.read_range(0, 1000)
        assert scope.cancelled_caught
        assert await blob.read_range(0, 1000) == DATA[:1000]

    on_wire(script, work)


def test_pieces_are_bytes_of_at_most_a_mebibyte_and_begin_before_the_end_came() -> None:
    big = bytes(8 << 20)

    async def work(blob: Blob) -> None:
        async with blob.open_range(0, blob.size) as pieces:
            sizes = [len(piece) async for piece in pieces if isinstance(piece, bytes)]
        assert sum(sizes) == len(big)
        assert len(sizes) > 1
        assert max(sizes) <= PIECE_MAX

    on_wire("ok", work, data=big)


def test_many_readers_read_one_blob_at_once_through_faults() -> None:
    async def work(blob: Blob) -> None:
        async def one(start: int) -> None:
            assert await blob.read_range(start, 5000) == DATA[start : start + 5000]

        async with trio.open_nursery() as nursery:
            for start in range(0, 250_000, 5000):
                nursery.start_soon(one, start)

    # One reader may meet several of the faults, and besides be given up while it waits beside the one that is held back.
    patient = RetryPolicy(9, first_s=0.001, retry_after_longest_s=0.01)
    on_wire("503 cut@100 429 close stall@10 short@50 ok", work, policy=patient)


def test_a_redirect_target_is_remembered() -> None:
    with LoopbackRegistry() as store:

        async def work(blob: Blob) -> None:
            for start in (0, 1000, 2000):
                assert await blob.read_range(start, 1000) == DATA[start : start + 1000]

        server = on_wire("redirect:store", work, elsewhere=store)
        assert (len(server.requests), len(store.requests)) == (1, 3)
        assert {record.query for record in store.requests} == {"signature=s3cr3t-signature"}


@pytest.mark.parametrize("refusal", ["403", "404", "410", "401", "400"])
def test_an_expired_target_is_replaced_by_asking_the_registry_once(refusal: str) -> None:
    with LoopbackRegistry() as store:

        async def work(blob: Blob) -> None:
            await blob.read_range(0, 1000)
            assert await blob.read_range(1000, 1000) == DATA[1000:2000]

        store.script("", f"ok {refusal} ok")
        server = on_wire("redirect:store*2", work, elsewhere=store)
        assert (len(server.requests), len(store.requests)) == (2, 3)


def test_a_target_that_refuses_right_after_the_redirect_is_a_denial() -> None:
    with LoopbackRegistry() as store:
        store.script("", "403*")
        server = on_wire("redirect:store*", fails(RegistryDenied, "HTTP 403"), elsewhere=store)
        assert (len(server.requests), len(store.requests)) == (1, 1)


@pytest.mark.parametrize("fault", ["503", "cut@20000", "cut@10", "hang", "close"])
def test_an_ill_target_sends_the_reader_back_to_the_registry(fault: str) -> None:
    with HoldingRegistry() as store:

        async def work(blob: Blob) -> None:
            await blob.read_range(0, 1000)
            assert await blob.read_range(1000, 100_000) == DATA[1000:101_000]

        store.script("", f"ok {fault} ok")
        server = on_wire("redirect:store ok", work, elsewhere=store)
        assert (len(server.requests), len(store.requests)) == (2, 2)


def test_a_whole_blob_is_verified_and_fetched_once_more_if_wrong() -> None:
    async def good(blob: Blob) -> None:
        assert await blob.read_whole(1 << 20) == DATA

    async def bad(blob: Blob) -> None:
        with pytest.raises(IntegrityError, match="other bytes than the digest names"):
            await blob.read_whole(1 << 20)

    async def large(blob: Blob) -> None:
        with pytest.raises(FormatError, match="the limit is 1000"):
            await blob.read_whole(1000)

    assert len(on_wire("corrupt ok", good).requests) == 2
    assert len(on_wire("corrupt*", bad).requests) == 2
    assert on_wire("ok", large).requests == []


_faults = st.sampled_from(
    ["ok", "503", "cut@0", "cut@700", "cut@30000", "short@99", "short@40000", "close", "429", "long@9", "endless"]
)


@settings(max_examples=25)
@given(st.lists(_faults, max_size=6), st.integers(0, 299_000), st.integers(1, 200_000))
def test_whatever_the_wire_does_the_bytes_are_right_or_there_is_an_error(
    faults: list[str], start: int, length: int
) -> None:
    length = min(length, len(DATA) - start)

    async def work(blob: Blob) -> None:
        try:
            found = await blob.read_range(start, length)
        except RegistryUnreachable:
            return
        assert found == DATA[start : start + length]

    on_wire(" ".join(faults), work)
