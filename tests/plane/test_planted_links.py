"""Symbolic links planted in the run directory, and where the trial of the erofs plane writes: none is followed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import ConfigError, PlaneError
from snapshotter.plane.erofs import probing
from snapshotter.plane.links import Links
from snapshotter.service.server import build_server
from tests.doubles.outside import Outside
from tests.plane.conftest import Place


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """What must stay as it is."""
    made = Outside(tmp_path)
    yield made
    made.check()


@pytest.mark.parametrize("name", ["l", "l/empty"])
def test_names_of_lower_directories_are_not_made_behind_a_link(tmp_path: Path, outside: Outside, name: str) -> None:
    path = tmp_path / "r" / name
    path.parent.mkdir(parents=True)
    path.symlink_to(outside.directory)
    with pytest.raises(PlaneError, match="a symbolic link lies where"):
        Links(tmp_path / "r" / "l")


def test_link_of_a_snapshot_is_replaced_and_removed_and_not_what_it_leads_to(tmp_path: Path, outside: Outside) -> None:
    links = Links(tmp_path / "l")
    for name in ("1", "2", ".3.99"):
        (tmp_path / "l" / name).symlink_to(outside.directory)
    links.point(1, "target")
    links.forget((), below=10)
    Links(tmp_path / "l")
    assert os.listdir(tmp_path / "l") == ["empty"]


def test_image_is_not_mounted_behind_a_link(place: Place, outside: Outside) -> None:
    place.directory.symlink_to(outside.directory)
    mounts = place.mounts()
    assert mounts.bring_back({}) == set()
    with pytest.raises(PlaneError, match="a symbolic link lies where"):
        mounts.ensure(1, place.image("a"))
    mounts.drop_all()
    assert place.directory.is_symlink()


def test_image_is_not_mounted_on_a_link(place: Place, outside: Outside) -> None:
    mounts = place.mounts()
    place.directory.mkdir()
    (place.directory / "1").symlink_to(outside.directory)
    with pytest.raises(PlaneError):
        mounts.ensure(1, place.image("a"))
    assert place.standing() == {}


@pytest.mark.parametrize("where", ["image", "images", "tree", "mounts", "mount"])
def test_trial_of_the_plane_writes_nothing_through_a_link(tmp_path: Path, outside: Outside, where: str) -> None:
    root, run_dir = tmp_path / "root", tmp_path / "r"
    path, target = {
        "image": (root / probing.IMAGES_NAME / probing.IMAGE_NAME, outside.missing),
        "images": (root / probing.IMAGES_NAME, outside.directory),
        "tree": (root / probing.TREE_NAME, outside.directory),
        "mounts": (run_dir / probing.MOUNTS_NAME, outside.directory),
        "mount": (run_dir / probing.MOUNTS_NAME / "e", outside.directory),
    }[where]
    for parent in (root, run_dir, path.parent):
        parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    # It may work or not; the other plane is there.
    probing.probe(root, run_dir)


@pytest.mark.parametrize("existing", [True, False])
def test_socket_is_not_made_behind_a_link(tmp_path: Path, outside: Outside, existing: bool) -> None:
    address = tmp_path / "snapshotter.sock"
    address.symlink_to(outside.file if existing else outside.missing)
    with pytest.raises(ConfigError, match="not a socket but something else"):
        build_server(address, [], max_workers=2)
