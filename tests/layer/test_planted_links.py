"""Symbolic links planted where layers keep manifests, TOCs, indexes and images: none is followed to write or to delete."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import StoreError
from tests.doubles.layers import file, layer
from tests.doubles.memory_registry import MemoryRegistry
from tests.doubles.outside import Outside
from tests.layer.world import run, world

BUILT = layer(file("a", b"content"))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """What must stay as it is."""
    made = Outside(tmp_path)
    yield made
    made.check()


async def start(root: Path) -> None:
    async with world(root, MemoryRegistry()):
        raise AssertionError("it started")


@pytest.mark.parametrize("name", ["tocs", "index", "manifests", "erofs"])
def test_link_in_place_of_a_directory_is_refused_at_the_start(tmp_path: Path, outside: Outside, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / name).symlink_to(outside.directory)
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="symbolic link")):
        run(lambda: start(root))


@pytest.mark.parametrize("existing", [True, False])
def test_links_in_place_of_files_are_replaced_and_never_written_through(
    tmp_path: Path, outside: Outside, existing: bool
) -> None:
    target = outside.file if existing else outside.missing
    root = tmp_path / "root"
    toc, digest = BUILT.toc_digest.removeprefix("sha256:"), BUILT.digest.removeprefix("sha256:")

    async def main() -> None:
        registry = MemoryRegistry()
        async with world(root, registry) as it:
            manifest = registry.add_image("1", [(BUILT.blob, dict(BUILT.annotations))]).digest.removeprefix("sha256:")
            planted = [
                root / "tocs" / f"{toc}.json.zst",
                root / "index" / f"{toc}-{digest[:16]}.2.idx",
                root / "manifests" / f"{manifest}.json",
            ]
            for path in planted:
                path.symlink_to(target)
            (root / "manifests" / f"{manifest}.json.new").symlink_to(target)
            (lazy,) = await it.pull(BUILT)
            assert await it.read(lazy, "a") == b"content"
            assert [path.is_symlink() for path in planted[:2]] == [False, False]

    run(main)


def test_links_are_tidied_and_not_what_they_lead_to(tmp_path: Path, outside: Outside) -> None:
    root = tmp_path / "root"
    for name in (
        "tocs/section-left",
        "manifests/left.json",
        "erofs/left.erofs",
        "erofs/directory.erofs",
        "index/left.idx",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(outside.directory if "directory" in name else outside.file)

    async def main() -> None:
        async with world(root, MemoryRegistry()) as it:
            (lazy,) = await it.pull(BUILT)
            assert await it.read(lazy, "a") == b"content"

    run(main)
    assert not (root / "tocs/section-left").is_symlink()
