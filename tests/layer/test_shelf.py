"""Layers that come back at a start, and layers that go."""

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from snapshotter.errors import FailedPrecondition
from snapshotter.format.index import INDEX_REVISION, NODES_REVISION, Index
from snapshotter.store import cache_db
from snapshotter.store import state_snapshots as rows
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.state_snapshots import Kind, NewSnapshot
from tests.doubles.layers import BuiltLayer, dir, file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import request, run, world


def layers(count: int) -> list[BuiltLayer]:
    return [layer(dir("d"), file(f"d/{number}", b"x" * (1000 + number))) for number in range(count)]


def test_a_damaged_index_is_built_again_at_start(tmp_path: Path) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            await it.pull(built)
        (index,) = (tmp_path / "root" / "index").iterdir()
        index.write_bytes(index.read_bytes()[:-7])
        registry.manifests.clear()
        async with world(tmp_path / "root", registry) as it:
            (one,) = it.room.shelf.all()
            assert await it.read(one, "d/0") == built.files["d/0"]

    run(main)


def test_an_index_that_a_power_loss_tore_inside_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            await it.pull(built)
        # The last daemon of a boot that is over did not end in order.
        CacheDB(tmp_path / "root" / "cache.db").begin()
        (tmp_path / "boot_id").write_text("another boot\n")
        monkeypatch.setattr(cache_db, "BOOT_ID", tmp_path / "boot_id")
        (path,) = (tmp_path / "root" / "index").iterdir()
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
        async with world(tmp_path / "root", registry) as it:
            assert path.read_bytes() == good
            (one,) = it.room.shelf.all()
            assert await it.read(one, "d/0") == built.files["d/0"]

    run(main)


def test_a_layer_that_cannot_be_brought_back_is_said_and_ends_nothing(tmp_path: Path) -> None:
    registry, built = MemoryRegistry(), layers(2)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            lost, _ = await it.pull(*built)
            index, toc = it.room.shelf.index_path(lost.record), lost.record.toc_digest.removeprefix("sha256:")
        index.unlink()
        (tmp_path / "root" / "tocs" / f"{toc}.json.zst").unlink()
        async with world(tmp_path / "root", registry) as it:
            assert len(it.room.shelf.all()) == 1
            assert list(it.room.shelf.broken()) == [lost.number]
            (again,) = await it.pull(built[0], tag="2")
            assert await it.read(again, "d/0") == built[0].files["d/0"]
            assert it.room.shelf.broken() == {}

    run(main)


def test_an_unexpected_fault_in_one_layer_does_not_keep_the_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, built = MemoryRegistry(), layers(2)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            bad, _ = await it.pull(*built)
        real = Index.open

        def opened(path: Path, **more: bool) -> Index:
            if str(path).endswith(bad.record.toc_digest[7:] + f"-{bad.record.layer_digest[7:23]}.{INDEX_REVISION}.idx"):
                raise ValueError("a fault of the program")
            return real(path, **more)

        monkeypatch.setattr(Index, "open", opened)
        async with world(tmp_path / "root", registry) as it:
            assert len(it.room.shelf.all()) == 1
            assert list(it.room.shelf.broken()) == [bad.number]

    run(main)


def test_a_layer_that_is_removed_while_its_image_is_pulled_again_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, (built,) = MemoryRegistry(), layers(1)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            (first,) = await it.pull(built)
            go_on, forget = threading.Event(), it.state.forget_layer

            def slowly(number: int) -> None:
                assert go_on.wait(10)
                forget(number)

            monkeypatch.setattr(it.state, "forget_layer", slowly)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.room.release, first.number)
                await trio.testing.wait_all_tasks_blocked(0.05)
                digest = registry.add_image("2", [(built.blob, dict(built.annotations))]).digest
                nursery.start_soon(it.room.resolve, request(built, digest, tag="2"))
                await trio.testing.wait_all_tasks_blocked(0.05)
                go_on.set()
            again = await it.room.resolve(request(built, digest, tag="2"))
            assert it.state.layer(again.number).layer_digest == built.digest
            assert await it.read(again, "d/0") == built.files["d/0"]

    run(main)


def test_a_layer_is_not_removed_while_it_is_opened(tmp_path: Path) -> None:
    (built,) = layers(1)

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            (one,) = await it.pull(built)
            async with it.room.shelf.opening(built.digest):
                with pytest.raises(FailedPrecondition):
                    await it.room.release(one.number)
            assert await it.read(one, "d/0") == built.files["d/0"]
            await it.room.release(one.number)
            assert it.room.shelf.all() == ()

    run(main)


@pytest.mark.parametrize("older", [NODES_REVISION, NODES_REVISION - 1])
def test_an_index_of_another_version_is_built_anew_without_network(tmp_path: Path, older: int) -> None:
    """Under a new number where nodes were numbered otherwise: the kernel may know those of the old one."""
    registry, built = MemoryRegistry(), layers(2)

    async def main() -> None:
        async with world(tmp_path / "root", registry) as it:
            old, kept = await it.pull(*built)
            await it.read(old, "d/0")
            with it.state.write() as db:
                made = rows.insert(db, NewSnapshot("one", None, Kind.COMMITTED, 1, {}, layer_number=old.number))
                db.execute("UPDATE layers SET index_revision = ? WHERE number = ?", (older, old.number))
            path = it.room.shelf.index_path(old.record)
            path.rename(path.with_name(path.name.replace(f".{INDEX_REVISION}.idx", f".{older}.idx")))
        registry.blobs.clear()
        registry.manifests.clear()
        async with world(tmp_path / "root", registry) as it:
            assert it.room.shelf.broken() == {}
            renewed, known = sorted(it.room.shelf.all(), key=lambda one: one.number == kept.number)
            assert (known.number, renewed.record.layer_digest) == (kept.number, old.record.layer_digest)
            assert (renewed.number == old.number) is (older >= NODES_REVISION)
            assert await it.read(renewed, "d/0") == built[0].files["d/0"]
            with it.state.read() as db:
                (snapshot,) = rows.everything(db)
            assert (snapshot.id, snapshot.layer_number) == (made, renewed.number)
            assert it.state.sources(renewed.number) != []
            assert len(list((it.root / "index").iterdir())) == 2

    run(main)
