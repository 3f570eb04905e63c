"""Contents through real mounts: what containerd's own snapshotter suite demands (containerd-contract 2)."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.service.node import Client, Node, mounted

Change = Callable[[Path], object]


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """A file with exactly this mode."""
    path.write_text(text)
    path.chmod(mode)


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything the suite compares: type and mode, owner, content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


@contextmanager
def seen(client: Client, name: str) -> Iterator[dict[str, tuple[object, ...]]]:
    """The tree of a committed snapshot as a view shows it; the view is removed at the end."""
    with mounted(client.view(f"{name}-seen", name)) as place:
        found = tree(place)
    try:
        yield found
    finally:
        client.remove(f"{name}-seen")


def check_layers(client: Client, flat: Path, changes: list[Change]) -> None:
    """Apply each change as a layer and to a flat copy; both must look alike after each."""
    parent = ""
    flat.mkdir()
    for number, change in enumerate(changes):
        name = f"layer-{number}"
        client.layer(name, parent, change)
        change(flat)
        with seen(client, name) as found:
            assert found == tree(flat)
        parent = name


def test_a_change_on_top_of_a_committed_snapshot_leaves_it_alone(client: Client) -> None:
    def first(top: Path) -> None:
        write(top / "foo", "foo\n", 0o777)
        (top / "a/b/c").mkdir(parents=True)
        write(top / "a/b/c/kept", "kept")

    def second(top: Path) -> None:
        write(top / "bar", "bar\n", 0o777)
        write(top / "foo", "changed\n", 0o600)
        shutil.rmtree(top / "a/b")
        write(top / "a/b", "now a file")

    client.layer("one", "", first)
    with pytest.raises(grpc.RpcError):
        client.stat("one-key")
    client.layer("two", "one", second)
    with seen(client, "one") as found:
        assert set(found) == {"foo", "a", "a/b", "a/b/c", "a/b/c/kept"}
        assert found["foo"][3] == b"foo\n"
    with seen(client, "two") as found:
        assert set(found) == {"foo", "bar", "a", "a/b"}
        assert found["foo"] == (stat.S_IFREG | 0o600, 0, 0, b"changed\n")


def test_a_file_of_the_same_size_changes_in_an_upper_layer(client: Client, tmp_path: Path) -> None:
    def write_round(number: int) -> Change:
        return lambda top: write(top / "file", f"round {number}")

    check_layers(client, tmp_path / "flat", [write_round(number) for number in range(5)])


def test_a_directory_made_anew_hides_the_one_below(client: Client, tmp_path: Path) -> None:
    def first(top: Path) -> None:
        (top / "dir").mkdir()
        write(top / "dir/old", "old")

    def second(top: Path) -> None:
        shutil.rmtree(top / "dir")
        (top / "dir").mkdir()
        write(top / "dir/new", "new")

    check_layers(client, tmp_path / "flat", [first, second])


def test_a_new_owner_alone_is_a_change(client: Client, tmp_path: Path) -> None:
    def first(top: Path) -> None:
        (top / "opt/a/b").mkdir(parents=True)
        write(top / "opt/a/b/file", "hello")

    def second(top: Path) -> None:
        os.chown(top / "opt/a/b/file", 1, 1)
        os.chown(top / "opt/a", 2, 3)

    check_layers(client, tmp_path / "flat", [first, second])


def test_owners_and_modes_of_directories_survive_three_layers(client: Client, tmp_path: Path) -> None:
    def first(top: Path) -> None:
        for name in ("dir1", "dir2", "dir3"):
            (top / name).mkdir()
            (top / name).chmod(0o700)
        os.chown(top / "dir1", 1, 1)

    def second(top: Path) -> None:
        shutil.rmtree(top / "dir1")
        (top / "dir1").mkdir()
        (top / "dir1").chmod(0o711)
        os.chown(top / "dir2", 2, 2)

    def third(top: Path) -> None:
        (top / "dir3").chmod(0o1777)
        os.chown(top / "dir3", 3, 3)
        write(top / "dir1/file", "x")

    check_layers(client, tmp_path / "flat", [first, second, third])


def test_deleted_files_stay_deleted_under_an_empty_layer(client: Client, tmp_path: Path) -> None:
    def first(top: Path) -> None:
        write(top / "foo", "foo")
        write(top / "bar", "bar")

    check_layers(client, tmp_path / "flat", [first, lambda top: (top / "foo").unlink(), lambda top: None])


def test_a_file_moves_by_hard_link_into_a_new_directory(client: Client, tmp_path: Path) -> None:
    def second(top: Path) -> None:
        (top / "dir").mkdir()
        os.link(top / "file", top / "dir/file")
        (top / "file").unlink()

    check_layers(client, tmp_path / "flat", [lambda top: write(top / "file", "moved"), second])


def test_a_file_is_renamed_over_a_lower_one(client: Client, tmp_path: Path) -> None:
    def first(top: Path) -> None:
        write(top / "target", "old")
        write(top / "other", "x")

    def second(top: Path) -> None:
        write(top / "new", "new")
        (top / "new").rename(top / "target")
        (top / "other").rename(top / "renamed")

    check_layers(client, tmp_path / "flat", [first, second])


def test_a_view_cannot_be_written(client: Client) -> None:
    client.layer("one", "", lambda top: write(top / "foo", "foo"))
    client.layer("two", "one", lambda top: write(top / "bar", "bar"))
    for parent in ("", "one", "two"):
        view = client.view(f"view of {parent}", parent)
        with mounted(view) as place, pytest.raises(OSError, match="Read-only file system"):
            (place / "new").touch()


@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_roots_have_their_modes_whatever_the_umask(node: Node, mask: int) -> None:
    before = os.umask(mask)
    try:
        node.client.prepare("active")
    finally:
        os.umask(before)
    with mounted(node.client.mounts("active")) as place:
        assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert stat.S_IMODE(node.directories.work(1).stat().st_mode) == 0o711
    assert stat.S_IMODE(node.directories.fs(1).parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(node.directories.fs(1).parent.parent.stat().st_mode) == 0o700


def test_the_upper_directory_has_the_owner_of_the_parents_root(client: Client) -> None:
    client.layer("one", "", lambda top: os.chown(top, 12, 34))
    with mounted(client.prepare("container", "one")) as place:
        status = place.stat()
    assert (status.st_uid, status.st_gid) == (12, 34)


def test_128_layers_mount(client: Client, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    parent = ""
    for number in range(128):

        def change(top: Path, number: int = number) -> None:
            write(top / "common", f"layer {number}")
            write(top / f"file-{number % 40}", str(number))
            if number % 10 == 9:
                (top / f"file-{number % 40 - 1}").unlink()

        client.layer(f"layer {number}", parent, change)
        change(flat)
        parent = f"layer {number}"
    with seen(client, parent) as found:
        assert found == tree(flat)
