"""The kernel's table of mounts, read from text; and what may be stacked on one place."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.mounts import (
    Mount,
    call_mount,
    detach,
    detach_all,
    mount,
    mounts_below,
    mounts_on,
    parse_mountinfo,
)

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
42 27 0:39 / /run/a\040b\134c ro,nosuid shared:5 master:1 - fuse.estargz estargz ro,user_id=0
43 42 0:40 /in\011side /run/a\040b\134c ro - tmpfs with\040space size=1\040k
a line that is cut
"""


def test_mount_points_are_unescaped_and_optional_fields_skipped() -> None:
    assert list(parse_mountinfo(TABLE))[1:] == [
        Mount(b"/run/a b\\c", "0:39", "fuse.estargz", "estargz", b"/", b"ro,user_id=0"),
        Mount(b"/run/a b\\c", "0:40", "tmpfs", "with space", b"/in\tside", b"size=1\\040k"),
    ]


def test_lines_of_another_form_are_passed_over() -> None:
    assert [entry.fs_type for entry in parse_mountinfo(TABLE)] == ["proc", "fuse.estargz", "tmpfs"]


def test_detaching_what_is_no_mount_is_a_plane_error(tmp_path: Path) -> None:
    with pytest.raises(PlaneError, match="Invalid argument"):
        detach(tmp_path)


def test_a_mount_is_found_through_a_link_to_the_directory_above(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "table").write_text(f"1 2 0:9 / {tmp_path}/real/fuse ro - fuse.estargz estargz ro\n")
    for place in ("real/fuse", "link/fuse"):
        assert [entry.device for entry in mounts_on(tmp_path / place, tmp_path / "table")] == ["0:9"]


def test_mounts_below_a_directory_go_by_their_path_in_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    places = ("e", "e/1", "e/b\\040c/d", "e/1", "e1", "f/1")
    rows = [f"{row} 2 0:{row} / {tmp_path}/run/{place} ro - tmpfs t ro\n" for row, place in enumerate(places)]
    (tmp_path / "table").write_text("".join(rows))
    for directory in (tmp_path / "run/e", tmp_path / "link/e"):
        found = mounts_below(directory, tmp_path / "table")
        assert {path: [entry.device for entry in stack] for path, stack in found.items()} == {
            b"1": ["0:1", "0:3"],
            b"b c/d": ["0:2"],
        }


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Path]:
    """Two mounts on one place."""
    for _ in range(2):
        mount("stacked", tmp_path, "tmpfs", 0, "size=64k")
    yield tmp_path
    while mounts_on(tmp_path):
        detach(tmp_path)


def test_detaching_all_counts_what_was_stacked(stack: Path) -> None:
    assert detach_all(stack) == 2
    assert detach_all(stack) == detach_all(stack / "missing") == 0


def test_a_refused_mount_tells_its_errno_or_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such device") as refusal:
        call_mount("none", tmp_path, "nosuchfs", 0, "")
    assert refusal.value.errno == errno.ENODEV
    with pytest.raises(
        PlaneError, match=f"cannot mount nosuchfs on {tmp_path}: No such device; mounting needs CAP_SYS"
    ):
        mount("none", tmp_path, "nosuchfs", 0, "")
