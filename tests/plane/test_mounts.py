"""The kernel's table of mounts, read from text."""

from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.mounts import Mount, detach, mounts_on, parse_mountinfo

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
