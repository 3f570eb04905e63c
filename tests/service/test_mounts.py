"""Which mounts and which Prepares are which."""

from pathlib import Path

import pytest

from snapshotter.request import LowerDirs
from snapshotter.service.labels import SNAPSHOT_REF
from snapshotter.service.mounts import OPTIONS_MAX, is_extraction, kernel_has_index, overlay, room_for_lower

CHAIN = "sha256:" + "c" * 64


def test_an_overlay_without_index_names_no_such_option() -> None:
    mount = overlay(LowerDirs(("/l/2", "/l/1")), upper=Path("/u"), work=Path("/w"), index_off=False)
    assert mount.options == ("workdir=/w", "upperdir=/u", "lowerdir=/l/2:/l/1")


def test_an_empty_path_stands_before_data_only_layers() -> None:
    mount = overlay(LowerDirs(("/l/1", "", "/data"), ("metacopy=on",)), upper=None, work=None, index_off=True)
    assert mount.options == ("index=off", "metacopy=on", "lowerdir=/l/1::/data")


def test_what_is_left_for_lower_directories_fills_the_page_and_no_more() -> None:
    upper, work = Path("/r/snapshots/1/fs"), Path("/r/snapshots/1/work")
    room = room_for_lower(upper=upper, work=work)
    lower = LowerDirs(("/l/" + "n" * (room - len("lowerdir=/l/")),))
    mount = overlay(lower, upper=upper, work=work, index_off=True)
    assert len(",".join(mount.options)) == OPTIONS_MAX


def test_the_option_is_looked_for_in_the_kernel(tmp_path: Path) -> None:
    assert not kernel_has_index(tmp_path)
    (tmp_path / "index").touch()
    assert kernel_has_index(tmp_path)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"extract-740708864-VwT0 {CHAIN}", True),
        (f"k8s.io/29/extract-740708864-VwT0 {CHAIN}", True),
        ("k8s.io/29/extract-740708864-VwT0", False),
        ("extract-me", False),
        (f"k8s.io/3/container {CHAIN}", False),
        (f"k8s.io/29/xextract-740708864-VwT0 {CHAIN}", False),
    ],
)
def test_extraction_is_known_by_the_unpackers_key(key: str, expected: bool) -> None:
    assert is_extraction(key, {}) is expected


def test_extraction_is_known_by_its_target() -> None:
    assert is_extraction("any", {SNAPSHOT_REF: CHAIN})
