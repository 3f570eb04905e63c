"""A source whose blobs are fetched once for two uses."""

from pathlib import Path
from typing import cast

import pytest
import trio

from snapshotter.errors import IntegrityError
from snapshotter.format.digest import Digest
from snapshotter.image.optimize.kept_blobs import KeptBlobs
from snapshotter.image.places.ends import OnProgress, Source
from snapshotter.registry.manifest import Descriptor, Manifest

BLOB = Descriptor("application/octet-stream", Digest(f"sha256:{'a' * 64}"), 5)


class Counted:
    """A source that counts what is fetched from it."""

    def __init__(self) -> None:
        self.fetched = 0
        self.broken = False

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        self.fetched += 1
        return Manifest(b"%d" % self.fetched, "", descriptor.digest if descriptor else BLOB.digest)

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        self.fetched += 1
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise IntegrityError("other bytes")
        path = scratch / f"copy-{self.fetched}"
        path.write_bytes(b"bytes")
        on_progress(5)
        return path


@pytest.fixture
def source() -> Counted:
    return Counted()


@pytest.fixture
def blobs(source: Counted, tmp_path: Path) -> KeptBlobs:
    return KeptBlobs(cast(Source, source), tmp_path)


def test_name_goes_on_meaning_the_image_that_ran_though_its_tag_is_pushed_anew(blobs: KeptBlobs) -> None:
    first = trio.run(blobs.manifest, None)
    assert trio.run(blobs.manifest, BLOB).raw != first.raw
    assert trio.run(blobs.manifest, None) == first


def test_blob_that_is_wanted_twice_is_fetched_once(source: Counted, blobs: KeptBlobs, tmp_path: Path) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(blobs.blob_file, BLOB)
        moved: list[int] = []
        path = await blobs.blob_file(BLOB, tmp_path / "of-the-conversion", moved.append)
        assert (path.read_bytes(), moved) == (b"bytes", [5])
        # The conversion deletes what lies in its own directory.
        assert path.parent != tmp_path / "of-the-conversion"

    trio.run(run)
    assert source.fetched == 1


def test_blob_that_nobody_keeps_lies_where_it_is_wanted(source: Counted, blobs: KeptBlobs, tmp_path: Path) -> None:
    async def run() -> None:
        for number in range(2):
            place = tmp_path / str(number)
            place.mkdir()
            assert (await blobs.blob_file(BLOB, place)).parent == place

    trio.run(run)
    assert source.fetched == 2


def test_blob_that_could_not_be_fetched_is_tried_again(source: Counted, blobs: KeptBlobs) -> None:
    async def run() -> None:
        source.broken = True
        with pytest.raises(IntegrityError):
            await blobs.blob_file(BLOB)
        source.broken = False
        assert (await blobs.blob_file(BLOB)).read_bytes() == b"bytes"

    trio.run(run)
