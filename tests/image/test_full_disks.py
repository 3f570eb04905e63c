"""Conversions for which there is no room: said clearly, nothing left behind, and nothing lost."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import StoreFull
from tests.doubles.registry import LoopbackRegistry
from tests.format.tars import entry, tar
from tests.image.converting import LOWER, run
from tests.image.images import Image, Layout

ROOM = 1 << 20
# Does not become smaller by compressing.
SIZES = {"fetch": 1_200_000, "unpack": 700_000, "compress": 700_000}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of `ROOM` bytes."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def noise(size: int) -> bytes:
    return tar(entry("noise", random.Random(size).randbytes(size)))


@pytest.mark.parametrize("step", list(SIZES))
def test_scratch_that_is_full_is_named_and_emptied(
    step: str, small: Path, registry: LoopbackRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image(LOWER, noise(SIZES[step]))
    # Of a layout the blob is read where it lies: what fills the disk is the result.
    source = image.lay_out(tmp_path / "a") if step == "compress" else image.push(registry)
    assert run(source, f"oci:{tmp_path}/b:new", "--scratch", small) == StoreFull.exit_code
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("snapshotter: no room left at ")
    assert str(small) in complaint
    assert list(small.iterdir()) == []
    assert not (tmp_path / "b" / "index.json").exists()
    assert run(source, f"oci:{tmp_path}/b:new", "--scratch", tmp_path) == 0


@pytest.mark.usefixtures("scratch")
def test_target_that_is_full_keeps_its_images_and_gets_no_half_one(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Image(LOWER).lay_out(tmp_path / "a"), f"oci:{small}/b:new") == 0
    layout = Layout(small / "b")
    before = layout.top()
    source = Image(noise(1000), noise(2 * ROOM)).lay_out(tmp_path / "c")
    assert run(source, f"oci:{small}/b:new") == StoreFull.exit_code
    assert str(small) in capsys.readouterr().err.splitlines()[-1]
    assert layout.top() == before
    assert [layout.blob(one["digest"]) for one in before["layers"]]
    assert not [path for path in small.rglob("*") if path.name.startswith(".estargz-new-")]
    assert run(Image(noise(500)).lay_out(tmp_path / "d"), f"oci:{small}/b:other") == 0
    assert layout.names() == ["new", "other"]
