"""Files that never got their names: those of killed processes go, others stay."""

import fcntl
import os
from pathlib import Path

from snapshotter.image.places.disk import new_beside, replacing

AN_HOUR_AGO = (1, 1)


def abandoned(folder: Path, name: str = ".estargz-new-old") -> Path:
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, AN_HOUR_AGO)
    return path


def test_file_of_a_killed_process_is_deleted_by_the_next_write(tmp_path: Path) -> None:
    old = abandoned(tmp_path)
    with replacing(tmp_path / "blob") as out:
        out.write(b"whole")
    assert not old.exists()
    assert sorted(os.listdir(tmp_path)) == ["blob"]


def test_file_that_somebody_writes_stays(tmp_path: Path) -> None:
    with new_beside(tmp_path / "one") as other:
        os.utime(other.name, AN_HOUR_AGO)
        new_beside(tmp_path / "two").close()
        assert Path(other.name).exists()


def test_young_ones_links_and_files_of_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / ".estargz-new-young").touch()
    (tmp_path / ".estargz-new-link").symlink_to(abandoned(tmp_path, "something"))
    other = abandoned(tmp_path, ".estargz-newer")
    new_beside(tmp_path / "x").close()
    assert (tmp_path / ".estargz-new-young").exists()
    assert (tmp_path / ".estargz-new-link").is_symlink()
    assert (tmp_path / "something").exists()
    assert other.exists()


def test_lock_ends_with_the_file(tmp_path: Path) -> None:
    made = new_beside(tmp_path / "x")
    made.close()
    with open(made.name, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
