"""The kernel's table of mounts, read from text."""

from pathlib import Path

import pytest

from snapshotter.errors import PlaneError
from snapshotter.plane.mounts import Mount, detach, parse_mountinfo

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
42 27 0:39 / /run/a\040b\134c ro,nosuid shared:5 master:1 - fuse.estargz estargz ro,user_id=0
43 42 0:40 / /run/a\040b\134c ro - tmpfs with\040space rw
a line that is cut
"""


def test_mount_points_are_unescaped_and_optional_fields_skipped() -> None:
    assert list(parse_mountinfo(TABLE))[1:] == [
        Mount(b"/run/a b\\c", "0:39", "fuse.estargz", "estargz"),
        Mount(b"/run/a b\\c", "0:40", "tmpfs", "with space"),
    ]


def test_lines_of_another_form_are_passed_over() -> None:
    assert [entry.fs_type for entry in parse_mountinfo(TABLE)] == ["proc", "fuse.estargz", "tmpfs"]


def test_detaching_what_is_no_mount_is_a_plane_error(tmp_path: Path) -> None:
    with pytest.raises(PlaneError, match="Invalid argument"):
        detach(tmp_path)
