"""The directories of ordinary snapshots, and what crashes leave of them."""

import errno
import os
from pathlib import Path

import pytest

from snapshotter.errors import ConfigError, StoreError, StoreFull
from snapshotter.service import directories as module
from snapshotter.service.deep_trees import delete_tree
from snapshotter.service.directories import SnapshotDirectories
from tests.doubles.outside import Outside


@pytest.mark.parametrize("bad", [",", ":", "\\", '"', "\n"])
def test_a_root_that_mount_options_cannot_carry_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match="choose another root"):
        SnapshotDirectories(tmp_path / f"a{bad}b")


def test_what_an_undone_transaction_left_makes_room(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path / "s")
    directories.create(7, with_work=True, owner=None)
    (directories.fs(7) / "of another life").touch()
    directories.create(7, with_work=False, owner=(5, 6))
    assert list(directories.fs(7).iterdir()) == []
    assert not directories.work(7).exists()
    assert directories.owner(7) == (5, 6)


def test_new_directories_are_on_the_disk_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []

    def fsync(fd: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), sorted(os.listdir(fd))))

    monkeypatch.setattr(os, "fsync", fsync)
    SnapshotDirectories(tmp_path / "snapshots").create(1, with_work=True, owner=None)
    root = tmp_path / "snapshots"
    assert sorted(synced) == [(str(root), ["1"]), (str(root / "1"), ["fs", "work"])]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = SnapshotDirectories(tmp_path / "s")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "chown", full)
        with pytest.raises(StoreFull, match="free space"):
            directories.create(1, with_work=True, owner=(1, 1))
    assert list((tmp_path / "s").iterdir()) == []


def test_a_missing_directory_is_a_store_error(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path / "s")
    for call in (directories.usage, directories.owner):
        with pytest.raises(StoreError, match="s/9/fs"):
            call(9)


def test_directories_without_a_snapshot_are_set_aside_then_deleted(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path / "s")
    for number in (1, 2, 3):
        directories.create(number, with_work=True, owner=None)
    (tmp_path / "s/stranger").write_text("x")
    directories.set_aside_all_but({2})
    # The number is free at once: a Prepare may take it before the deletion.
    directories.create(3, with_work=True, owner=None)
    directories.delete_set_aside()
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["2", "3"]


def test_one_that_cannot_be_deleted_keeps_none_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = SnapshotDirectories(tmp_path / "s")
    for number in (1, 2, 3):
        directories.create(number, with_work=True, owner=None)
    directories.set_aside_all_but(set())

    def immutable(top: Path) -> None:
        if top.name.startswith("gone-2"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "file")
        delete_tree(top)

    monkeypatch.setattr(module, "delete_tree", immutable)
    with pytest.raises(StoreError, match="gone-2"):
        directories.delete_set_aside()
    assert [path.name[:6] for path in (tmp_path / "s").iterdir()] == ["gone-2"]


def test_directory_of_directories_is_no_link(tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    (tmp_path / "snapshots").symlink_to(outside.directory)
    with pytest.raises(StoreError, match="a symbolic link lies where"):
        SnapshotDirectories(tmp_path / "snapshots")
    outside.check()


def test_links_in_place_of_snapshots_are_put_aside_and_deleted_and_not_what_they_lead_to(tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    directories = SnapshotDirectories(tmp_path / "snapshots")
    for name in ("1", "2", "gone-3"):
        (tmp_path / "snapshots" / name).symlink_to(outside.directory)
    directories.create(1, with_work=True, owner=(1, 1))
    assert not (tmp_path / "snapshots" / "1").is_symlink()
    directories.set_aside_all_but({1})
    directories.delete_set_aside()
    assert os.listdir(tmp_path / "snapshots") == ["1"]
    outside.check()
