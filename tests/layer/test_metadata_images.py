"""Images of layers on disk: written by the worker, named by all that they depend on, and mended by writing them again."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from snapshotter.errors import SnapshotterError
from snapshotter.format.erofs import check_image, write_image
from snapshotter.format.index import Index
from snapshotter.layer.layer import Layer
from snapshotter.layer.metadata_images import RETRY_AFTER_S, MetadataImages
from snapshotter.layer.toc_jobs import ImageJob, Job
from snapshotter.layer.toc_pool import TocPool
from snapshotter.store.identity import ContentPaths
from tests.doubles.layers import BuiltLayer, dir, file, layer, symlink
from tests.doubles.memory_registry import MemoryRegistry
from tests.layer.world import World, content_name, run, until, world

BUILT = layer(dir("d"), file("d/small", b"text"), file("large", bytes(range(256)) * 400), chunk_size=40_000)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an image was written, by its path."""
    counted, real = Counter[str](), TocPool.run

    async def counting(pool: TocPool, job: object) -> object:
        if isinstance(job, ImageJob):
            counted[job.image] += 1
        return await real(pool, job)  # type: ignore[arg-type]

    monkeypatch.setattr(TocPool, "run", counting)
    return counted


def images(it: World) -> MetadataImages:
    return it.room.shelf.metadata_images


def on_disk(it: World) -> set[Path]:
    return set((it.root / "erofs").iterdir())


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """So much time goes by at once, for those who wait before they try again."""
    now = trio.current_time
    monkeypatch.setattr(trio, "current_time", lambda: now() + seconds)


async def pull(it: World, built: BuiltLayer = BUILT) -> Layer:
    (one,) = await it.pull(built)
    return one


def test_the_worker_writes_the_image_that_the_index_makes(tmp_path: Path, jobs: Counter[str]) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            assert on_disk(it) == set()
            path = await it.room.image(one.number)
            assert path == it.room.image_path(one.number) == images(it).path(one.record)
            paths = ContentPaths(it.store.place, "node")
            image = path.read_bytes()
            check_image(image)
            assert image == write_image(one.index, paths.directory, paths.large)
            for name in ("d/small", "large"):
                content = content_name(one, name)
                assert f"/{it.store.place}/node/{content[:2]}/{content}".encode() in image
            assert path.stat().st_mode & 0o777 == 0o600
            assert await it.room.image(one.number) == path
            assert jobs == {str(path): 1}

    run(main)


def test_a_path_says_everything_that_the_bytes_depend_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            record = (await pull(it)).record
            shelf = it.room.shelf

            def path(place: str = "_aaaaaaaaaaaaa", **changes: object) -> Path:
                made = MetadataImages(it.nursery, it.root / "erofs", place, it.room.pool, shelf.index_path, list)
                return made.path(replace(record, **changes))  # type: ignore[arg-type]

            paths = [
                path(),
                path("_bbbbbbbbbbbbb"),
                path(domain="other"),
                path(layer_digest="sha256:" + "1" * 64),
                path(toc_digest="sha256:" + "2" * 64),
                path(index_revision=record.index_revision + 1),
            ]
            assert len(set(paths)) == len(paths)
            assert path(number=77, last_used_ns=1, complete=True) == path()
            assert all(len(each.name) < 255 for each in paths)

    run(main)


def test_who_asks_at_the_same_time_waits_for_one_image(tmp_path: Path, jobs: Counter[str]) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, found = await pull(it), list[Path]()

            async def ask() -> None:
                found.append(await images(it).ensure(one.record))

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(ask)
                    images(it).begin(one.record, anew=number % 5 == 0)
            path = images(it).path(one.record)
            assert found == [path] * 20
            assert jobs == {str(path): 1}

    run(main)


def test_a_damaged_image_is_written_anew_for_who_says_so(tmp_path: Path, jobs: Counter[str]) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            path = await it.room.image(one.number)
            sound, held = path.read_bytes(), path.open("rb")
            with held:
                path.write_bytes(sound[:-1] + b"x")
                assert await it.room.image(one.number) == path
                await it.room.begin_image(one.number, anew=True)
                assert await it.room.image(one.number) == path
                assert path.read_bytes() == sound
                # Another file: what is mounted from the damaged one is left alone.
                assert os.fstat(held.fileno()).st_ino != path.stat().st_ino
            assert jobs == {str(path): 2}
            assert on_disk(it) == {path}

    run(main)


def test_who_waits_no_longer_stops_nobodys_writing(tmp_path: Path, jobs: Counter[str]) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            with trio.CancelScope() as impatient:
                impatient.cancel()
                await it.room.image(one.number)
            path = await it.room.image(one.number)
            assert (path.exists(), impatient.cancelled_caught, jobs) == (True, True, {str(path): 1})

    run(main)


def test_a_damaged_index_is_an_error_and_leaves_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            index = it.room.shelf.index_path(one.record)
            sound = index.read_bytes()
            index.unlink()
            index.write_bytes(sound[:-7])
            for _ in range(2):
                with pytest.raises(SnapshotterError, match=f"the EROFS image of layer {one.record.layer_digest}"):
                    await it.room.image(one.number)
                assert on_disk(it) == set()
            index.unlink()
            later(monkeypatch, RETRY_AFTER_S)
            with pytest.raises(SnapshotterError):
                await it.room.image(one.number)
            index.write_bytes(sound)
            later(monkeypatch, RETRY_AFTER_S)
            check_image((await it.room.image(one.number)).read_bytes())
            assert it.room.image_failure(one.number) is None

    run(main)


def test_an_image_that_failed_is_not_tried_again_soon_and_all_who_wait_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one, real = await pull(it), TocPool.run
            failing, go_on, told = trio.Event(), trio.Event(), list[str]()

            async def failing_once(pool: TocPool, job: ImageJob) -> object:
                if failing.is_set():
                    return await real(pool, job)
                failing.set()
                await go_on.wait()
                raise SnapshotterError("the first one fails")

            async def ask() -> None:
                try:
                    await it.room.image(one.number)
                except SnapshotterError as error:
                    told.append(str(error))

            monkeypatch.setattr(TocPool, "run", failing_once)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(ask)
                    await failing.wait()
                await trio.testing.wait_all_tasks_blocked()
                go_on.set()
            why = f"the EROFS image of layer {one.record.layer_digest}: the first one fails"
            later(monkeypatch, RETRY_AFTER_S / 2)
            await it.room.begin_image(one.number, anew=True)
            await ask()
            assert told == [why] * 3
            assert it.room.image_failure(one.number) == why
            assert on_disk(it) == set()
            later(monkeypatch, RETRY_AFTER_S / 2)
            await ask()
            assert (len(told), it.room.image_failure(one.number)) == (3, None)
            check_image(it.room.image_path(one.number).read_bytes())

    run(main)


def test_an_image_goes_with_its_layer(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            other = (await it.pull(layer(symlink("l", "x")), tag="2"))[0]
            gone, stays = [await it.room.image(each.number) for each in (one, other)]
            await it.room.release(one.number)
            assert on_disk(it) == {stays}
            assert not gone.exists()

    run(main)


def test_an_image_that_another_record_has_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            path = await it.room.image(one.number)
            images(it).drop(one.record, [replace(one.record, number=99)])
            assert path.exists()
            images(it).drop(one.record, [replace(one.record, domain="other")])
            assert not path.exists()
            images(it).drop(one.record, [])

    run(main)


def test_each_domain_has_an_image_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            here = await images(it).ensure(one.record)
            other = replace(one.record, domain="other")
            it.room.shelf._layers[99] = cast("Any", SimpleNamespace(record=other))
            there = await images(it).ensure(other)
            del it.room.shelf._layers[99]
            assert here.read_bytes() != there.read_bytes()
            assert f"/{it.store.place}/other/".encode() in there.read_bytes()

    run(main)


def test_a_start_takes_away_what_no_layer_has(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            one = await pull(it)
            path = await it.room.image(one.number)
            strays = [path.with_name(f"{path.name}.4711.new"), path.with_name("0-1-2.1.erofs")]
            strays.append(path.with_name(path.name.replace(".erofs", "9.erofs")))
            for stray in strays:
                stray.write_bytes(b"half")
            (path.parent / "a directory").mkdir()
            it.room.tidy_images()
            assert on_disk(it) == {path, path.parent / "a directory"}
            assert path.read_bytes()
            (it.root / "erofs" / "a directory").rmdir()
            path.unlink()
            path.parent.rmdir()
            it.room.tidy_images()

    run(main)


# --- with a pull


def test_a_pull_begins_the_images_of_all_layers(tmp_path: Path, jobs: Counter[str]) -> None:
    built = [BUILT, layer(symlink("l", "x")), layer(dir("e"))]

    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), with_metadata_images=True) as it:
            layers = await it.pull(*built)
            paths = {it.room.image_path(each.number) for each in layers}
            await until(lambda: len(jobs) == len(built))
            # What the plane does with each before it answers.
            assert {await it.room.image(each.number) for each in layers} == paths == on_disk(it)
            for path in paths:
                check_image(path.read_bytes())
            assert await it.pull(*built, tag="2") == layers
            assert jobs == {str(path): 1 for path in paths}

    run(main)


def test_a_pull_waits_for_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), with_metadata_images=True) as it:
            real = TocPool.run

            async def without_images(pool: TocPool, job: Job | ImageJob) -> object:
                if isinstance(job, ImageJob):
                    await trio.sleep_forever()
                return await real(pool, job)

            monkeypatch.setattr(TocPool, "run", without_images)
            one = await pull(it)
            assert (it.room.image_failure(one.number), on_disk(it)) == (None, set())

    run(main)


def test_a_pull_on_the_other_plane_writes_no_images(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry()) as it:
            await pull(it)
            assert on_disk(it) == set()

    run(main)


def test_an_image_that_cannot_be_written_does_not_fail_the_pull(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path / "root", MemoryRegistry(), with_metadata_images=True) as it:
            (it.root / "erofs").rmdir()
            (it.root / "erofs").write_bytes(b"")
            one = await pull(it)
            assert await it.read(one, "d/small") == b"text"
            with pytest.raises(SnapshotterError):
                await it.room.image(one.number)
            (it.root / "erofs").unlink()
            (it.root / "erofs").mkdir()
            later(monkeypatch, RETRY_AFTER_S)
            check_image((await it.room.image(one.number)).read_bytes())

    run(main)
    assert caplog.text.count("the layer is served through FUSE") == 1


def test_an_image_outlives_a_restart_and_needs_no_network(tmp_path: Path, jobs: Counter[str]) -> None:
    registry = MemoryRegistry()

    async def main() -> None:
        async with world(tmp_path / "root", registry, with_metadata_images=True) as it:
            path = await it.room.image((await pull(it)).number)
        registry.blobs.clear()
        registry.manifests.clear()
        async with world(tmp_path / "root", registry, with_metadata_images=True) as it:
            it.room.tidy_images()
            (one,) = it.room.shelf.all()
            assert await it.room.image(one.number) == path
            path.unlink()
            assert Index.open(it.room.shelf.index_path(one.record)).node_count == one.index.node_count
            check_image((await it.room.image(one.number)).read_bytes())
        assert jobs == {str(path): 2}

    run(main)
