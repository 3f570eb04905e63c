"""Short names of lower directories."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.links import Links


def test_link_names_its_target(tmp_path: Path) -> None:
    link = Links(tmp_path / "l").point(5, "../fuse/1/layers/9")
    assert link == str(tmp_path / "l/5")
    assert os.readlink(link) == "../fuse/1/layers/9"


def test_link_of_an_earlier_session_is_replaced(tmp_path: Path) -> None:
    links = Links(tmp_path / "l")
    links.point(5, "../fuse/1/layers/9")
    link = links.point(5, "../fuse/2/layers/9")
    assert os.readlink(link) == "../fuse/2/layers/9"


def test_right_link_is_not_written_again(tmp_path: Path) -> None:
    links = Links(tmp_path / "l")
    link = links.point(5, "target")
    before = os.lstat(link).st_ino
    links.point(5, "target")
    assert os.lstat(link).st_ino == before


def test_threads_may_make_one_link_at_once(tmp_path: Path) -> None:
    links = Links(tmp_path / "l")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: links.point(i % 3, f"target-{i % 3}"), range(200)))
    assert sorted(set(made)) == [str(tmp_path / f"l/{i}") for i in range(3)]
    assert sorted(os.listdir(tmp_path / "l")) == ["0", "1", "2", "empty"]


def test_links_of_removed_snapshots_go_and_others_stay(tmp_path: Path) -> None:
    links = Links(tmp_path / "l")
    for snapshot_id in (1, 2, 3, 10):
        links.point(snapshot_id, "target")
    links.forget({2}, below=10)
    assert sorted(os.listdir(tmp_path / "l")) == ["10", "2", "empty"]


def test_half_made_links_of_a_killed_process_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l/.5.1234").symlink_to("target")
    Links(tmp_path / "l")
    assert os.listdir(tmp_path / "l") == ["empty"]


def test_directory_that_cannot_be_made_is_a_plane_error(tmp_path: Path) -> None:
    (tmp_path / "l").write_text("a file")
    with pytest.raises(PlaneError, match="cannot prepare"):
        Links(tmp_path / "l")
