"""Trees that a container made to be awkward."""

import os
import subprocess
from pathlib import Path

import pytest

from snapshotter.service.deep_trees import delete_tree, measure_tree


def nest(top: Path, depth: int, name: bytes) -> None:
    """A chain of directories with a file in each, made as a container could: by walking down."""
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


@pytest.mark.parametrize(("depth", "name"), [(2200, b"d"), (60, b"n" * 255)])
def test_a_tree_deeper_than_any_path_is_measured_and_deleted(tmp_path: Path, depth: int, name: bytes) -> None:
    top = tmp_path / "top"
    top.mkdir()
    nest(top, depth, name)
    size, inodes = measure_tree(top)
    assert inodes == 2 * depth + 1
    assert size >= (depth + 1) * 4096
    delete_tree(top)
    assert not top.exists()


def test_measuring_counts_what_du_counts(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_bytes(b"x" * 100_000)
    os.link(top / "a/b/file", top / "linked")
    os.symlink("/etc", top / "a/link")
    os.mkfifo(top / "fifo")
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (top / os.fsdecode(b"\xff\n")).write_text("name of bytes")
    size, inodes = measure_tree(top)
    du = ["du", "-s", "--block-size=1", str(top)]
    assert size == int(subprocess.run(du, check=True, capture_output=True).stdout.split()[0])
    du_inodes = ["du", "-s", "--inodes", str(top)]
    assert inodes == int(subprocess.run(du_inodes, check=True, capture_output=True).stdout.split()[0])


def test_a_missing_top_is_an_error_to_measure_and_nothing_to_delete(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measure_tree(tmp_path / "none")
    delete_tree(tmp_path / "none")


def test_deleting_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    os.symlink(outside, top / "link")
    os.symlink(outside, top / "a/b/link")
    delete_tree(top)
    assert (outside / "kept").exists()
    os.symlink(outside, top)
    delete_tree(top)
    assert not top.is_symlink()
    assert (outside / "kept").exists()


def test_names_that_look_like_ours_are_deleted_too(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("." + "0" * 24, "fs", "work/work"):
        (top / "x/y" / name).mkdir(parents=True)
        (top / name).mkdir(parents=True)
    (top / "work/work").chmod(0)
    delete_tree(top)
    assert not top.exists()
