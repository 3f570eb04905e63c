"""Reading blobs from a containerd in memory."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio

from snapshotter.containerd import blobs, ingest
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client
from snapshotter.errors import ContainerdError, ContainerdUnreachable, NotFound
from tests.doubles.containerd import containerd_at
from tests.doubles.containerd_state import Blob, FakeContainerd
from tests.doubles.registry import digest_of

DATA = bytes(range(256)) * 400
DIGEST = digest_of(DATA)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeContainerd]:
    with containerd_at(tmp_path / "c", FakeContainerd()) as made:
        made.blobs[DIGEST] = Blob(DATA)
        yield made


def read(folder: Path, start: int, size: int, digest: str = DIGEST) -> bytes:
    async def main() -> bytes:
        with connected(folder / "c") as channel:
            client = Client(channel, folder / "c", "default", "")
            async with blobs.open_range(client, digest, start, size) as pieces:
                return b"".join([piece async for piece in pieces])

    return trio.run(main)


@pytest.mark.parametrize(("start", "size"), [(0, len(DATA)), (0, 0), (1, 16 << 10), (len(DATA) - 1, 1), (7, 70_000)])
def test_exactly_the_range_is_read(start: int, size: int, node: FakeContainerd, tmp_path: Path) -> None:
    assert read(tmp_path, start, size) == DATA[start : start + size]


def test_range_past_the_end_and_blob_that_is_not_there_are_errors(node: FakeContainerd, tmp_path: Path) -> None:
    with pytest.raises(ContainerdError, match="past object length"):
        read(tmp_path, 1, len(DATA))
    with pytest.raises(NotFound):
        read(tmp_path, 0, 1, digest_of(b"none"))
    node.at_call = lambda _name, _number: grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ContainerdUnreachable):
        read(tmp_path, 0, 1)


def test_size_is_told_of_what_is_there(node: FakeContainerd, tmp_path: Path) -> None:
    async def main() -> list[int | None]:
        with connected(tmp_path / "c") as channel:
            client = Client(channel, tmp_path / "c", "default", "")
            return [await blobs.size_of(client, digest) for digest in (DIGEST, digest_of(b"none"))]

    assert trio.run(main) == [len(DATA), None]


def test_read_that_is_given_up_ends_its_call(node: FakeContainerd, tmp_path: Path) -> None:
    async def main() -> int:
        with connected(tmp_path / "c") as channel:
            client = Client(channel, tmp_path / "c", "default", "")
            async with blobs.open_range(client, DIGEST, 0, len(DATA)) as pieces:
                async for piece in pieces:
                    return len(piece)
        return 0

    assert 0 < trio.run(main) < len(DATA)


def test_progress_of_a_write_counts_each_byte_once(node: FakeContainerd, tmp_path: Path) -> None:
    told: list[int] = []
    wrong = [DATA[:-1] + b"x", DATA]
    node.blobs.clear()
    node.leases["lease"] = set()

    async def pieces(start: int) -> AsyncIterator[bytes]:
        yield wrong.pop(0)[start:]

    @asynccontextmanager
    async def content(start: int) -> AsyncIterator[AsyncIterator[bytes]]:
        yield pieces(start)

    async def main() -> bool:
        with connected(tmp_path / "c") as channel:
            client = Client(channel, tmp_path / "c", "default", "lease")
            return await ingest.put(client, "ref", DIGEST, len(DATA), content, told.append)

    assert trio.run(main) is True
    assert sum(told) == len(DATA)
    assert node.blobs[DIGEST].data == DATA
