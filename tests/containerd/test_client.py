"""Calls of containerd's services from a trio run: they end with it, and refusals are ours."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from snapshotter.api.descriptor_pb2 import Descriptor
from snapshotter.containerd import images, ingest, leases
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client, checked_namespace
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.errors import ConfigError, ContainerdError, ContainerdUnreachable, IntegrityError, NotFound
from tests.doubles.containerd import containerd_at, wait_until
from tests.doubles.containerd_state import Blob, FakeContainerd
from tests.doubles.registry import digest_of

DATA = b"some content" * 1000
DIGEST = digest_of(DATA)


@contextmanager
def client(folder: Path) -> Iterator[tuple[FakeContainerd, Client]]:
    with containerd_at(folder / "c", FakeContainerd()) as node, connected(folder / "c") as channel:
        node.leases["lease"] = set()
        yield node, Client(channel, folder / "c", "default", "lease")


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        with trio.fail_after(30):
            return await work()

    return trio.run(within)


async def write(to: Client, data: bytes, *, commit: bool = True) -> bool:
    """Write `data` from where the write is; whether it had to be written."""
    async with ingest.writing(to, "ref", DIGEST, len(DATA)) as write:
        if write is None:
            return False
        await write.write(data[write.offset :])
        if commit:
            await write.commit({"of": "ours"})
        return True


def test_blob_is_written_once_and_kept_by_the_lease(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        assert run(lambda: write(here, DATA)) is True
        assert node.blobs == {DIGEST: Blob(DATA, {"of": "ours"})}
        assert f"content/{DIGEST}" in node.leases["lease"]
        assert run(lambda: write(here, DATA)) is False


def test_write_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        run(lambda: write(here, DATA[:5000], commit=False))
        assert node.ingests["ref"] == DATA[:5000]
        wait_until(lambda: not node.locked)
        run(lambda: write(here, DATA))
        assert node.calls.count("Content.Write") == 2
        assert DIGEST in node.blobs


def test_write_of_something_else_is_no_blob(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        with pytest.raises(IntegrityError, match="something else"):
            run(lambda: write(here, bytes(len(DATA))))
        run(lambda: ingest.abort(here, "ref"))
        run(lambda: ingest.abort(here, "ref"))
        assert (node.ingests, node.blobs) == ({}, {})


def test_document_takes_the_place_of_what_an_earlier_write_left(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        node.ingests["ref"] = bytearray(b"rubbish")
        run(lambda: ingest.write_document(here, "ref", DIGEST, DATA))
        assert node.blobs[DIGEST].data == DATA


def test_labels_of_a_blob_are_added_to_those_it_has(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        node.blobs[DIGEST] = Blob(DATA, {"a.b/c": "1"})
        run(lambda: ingest.set_labels(here, DIGEST, {"d.e/f.0": "2"}))
        assert run(lambda: ingest.labels_of(here, DIGEST)) == {"a.b/c": "1", "d.e/f.0": "2"}
        with pytest.raises(NotFound):
            run(lambda: ingest.labels_of(here, "sha256:other"))


def test_record_is_made_or_changed_and_forgotten(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        first, second = Descriptor(digest="first", size=1), Descriptor(digest="second", size=2)
        assert run(lambda: images.name(here, "x", first, {"a": "1"})) is True
        node.images["x"].labels["other"] = "stays"
        assert run(lambda: images.name(here, "x", second, {"a": "2"})) is False
        assert node.images["x"].target == second
        assert dict(node.images["x"].labels) == {"a": "2", "other": "stays"}
        run(lambda: images.forget(here, "x"))
        run(lambda: images.forget(here, "x"))
        assert node.images == {}


def test_record_that_others_make_and_delete_is_given_up_in_the_end(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        codes = {"Images.Create": grpc.StatusCode.ALREADY_EXISTS, "Images.Update": grpc.StatusCode.NOT_FOUND}
        node.at_call = lambda name, _number: codes[name]
        with pytest.raises(ContainerdError, match="by others all the time"):
            run(lambda: images.name(here, "x", Descriptor(), {}))


def test_lease_that_is_gone_need_not_be_deleted(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        for _ in range(2):
            run(lambda: leases.delete(here, sync=True))
        assert node.leases == {}


def test_snapshot_that_is_there_is_held_from_then_on(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        snapshots = Snapshots(here, "estargz")
        assert run(lambda: snapshots.committed("chain")) is None
        assert node.leases["lease"] == set()


def test_call_that_is_given_up_ends_before_its_answer(tmp_path: Path) -> None:
    with client(tmp_path) as (node, here):
        asked, go_on = trio.Event(), threading.Event()

        async def given_up() -> None:
            token = trio.lowlevel.current_trio_token()

            def fate(_name: str, _number: int) -> None:
                token.run_sync_soon(asked.set)
                go_on.wait(20)

            node.at_call = fate
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leases.create, Client(here.channel, here.address, "default", "other"))
                await asked.wait()
                nursery.cancel_scope.cancel()

        run(given_up)
        assert not go_on.is_set()
        go_on.set()


def test_containerd_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    with containerd_at(tmp_path / "c", FakeContainerd()), connected(tmp_path / "c") as channel:
        here = Client(channel, tmp_path / "c", "default", "lease")
        run(lambda: leases.create(here))
    with connected_to_nobody(tmp_path) as here, pytest.raises(ContainerdUnreachable):
        run(lambda: leases.create(here))


@contextmanager
def connected_to_nobody(folder: Path) -> Iterator[Client]:
    with grpc.insecure_channel(f"unix:{folder / 'nobody'}") as channel:
        yield Client(channel, folder / "nobody", "default", "lease")


@pytest.mark.parametrize("name", ["default", "k8s.io", "a-b_c.d", "9", "x" * 76])
def test_names_that_containerd_takes_are_taken(name: str) -> None:
    assert checked_namespace(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a b", "ä", "a/b", "x" * 77, "a\n"])
def test_names_that_containerd_refuses_are_refused_before_it_is_asked(name: str) -> None:
    with pytest.raises(ConfigError, match="containerd takes letters and digits"):
        checked_namespace(name)
