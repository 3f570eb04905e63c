"""The scratch directory of a conversion, and what becomes of those of killed ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import NotFound
from snapshotter.image.scratch import scratch_directory

HOLD = """
import sys, pathlib
from snapshotter.image.scratch import scratch_directory
with scratch_directory(pathlib.Path(sys.argv[1])) as path:
    (path / "content").write_bytes(b"1")
    print(path, flush=True)
    sys.stdin.read()
"""


def test_directory_is_private_and_gone_at_the_end_whatever_happened(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_directory(tmp_path) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "content").mkdir()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_directory_of_a_killed_process_is_removed_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = Path(process.stdout.readline().strip())
        with scratch_directory(tmp_path):
            assert (other / "content").exists()
        process.kill()
        process.wait()
    assert other.exists()
    with scratch_directory(tmp_path) as path:
        assert list(tmp_path.iterdir()) == [path]


def test_what_only_has_such_a_name_stays(tmp_path: Path) -> None:
    (tmp_path / "convert-of-somebody").mkdir()
    (tmp_path / "convert-file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".estargz-snapshotter").touch()
    (tmp_path / "convert-link").symlink_to("elsewhere")
    others = tmp_path / "convert-of-another-user"
    others.mkdir()
    (others / ".estargz-snapshotter").touch()
    os.chown(others, 12345, 12345)
    with scratch_directory(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        "convert-of-somebody",
        "convert-file",
        "convert-link",
        "convert-of-another-user",
        "elsewhere",
    }
    assert (tmp_path / "elsewhere" / ".estargz-snapshotter").exists()


def test_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"), scratch_directory(tmp_path / "nowhere"):
        pass
