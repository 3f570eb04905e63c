import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import Config
from snapshotter.daemon import preflight
from snapshotter.errors import ConfigError, PlaneError, StoreError, StoreLocked


def test_only_root_may_run_the_daemon() -> None:
    with pytest.raises(PlaneError, match="must run as root"):
        preflight.check_root(1000)
    preflight.check_root(0)


def test_the_file_limit_becomes_the_hard_one(caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert preflight.raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        assert ("LimitNOFILE" in caplog.text) == (before[1] < preflight.FEW_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_directories_are_made_for_root_alone(tmp_path: Path) -> None:
    preflight.own_directory(tmp_path / "a" / "b", "root")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    preflight.own_directory(tmp_path / "a" / "b", "root")


def test_directories_of_others_or_open_to_others_are_refused(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "open")
    os.chmod(tmp_path / "open", 0o1777)
    with pytest.raises(ConfigError, match=r"open has mode 1777, others may write in it"):
        preflight.own_directory(tmp_path / "open", "run_dir")
    os.mkdir(tmp_path / "other", 0o700)
    os.chown(tmp_path / "other", 1234, 1234)
    with pytest.raises(ConfigError, match="belongs to user 1234"):
        preflight.own_directory(tmp_path / "other", "root")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: File exists"):
        preflight.own_directory(tmp_path / "file", "root")


@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_directories_and_what_leads_to_them_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        preflight.own_directory(tmp_path / "a" / "b" / "c", "root")
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o7777) for path in (tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a")] == [
        "0o700",
        "0o755",
        "0o755",
    ]


@pytest.mark.parametrize("names", [(), ("lost+found",), ("lock", "state.db")])
def test_a_directory_of_ours_that_others_may_list_is_closed_to_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(0o755)
    for name in names:
        (tmp_path / "own" / name).touch()
    preflight.own_directory(tmp_path / "own", "root")
    assert (tmp_path / "own").stat().st_mode & 0o7777 == 0o700


def test_a_directory_of_others_files_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib").chmod(0o755)
    (tmp_path / "lib" / "dpkg").touch()
    with pytest.raises(ConfigError, match=r"root .*lib has mode 755 and holds files that are not the daemon's"):
        preflight.own_directory(tmp_path / "lib", "root")
    assert (tmp_path / "lib").stat().st_mode & 0o7777 == 0o755


def test_two_roots_cannot_share_a_run_directory(tmp_path: Path) -> None:
    config = replace(Config(), run_dir=tmp_path)
    with (
        preflight.lock_run_dir(config),
        pytest.raises(StoreLocked, match=f"run directory {tmp_path} is in use by process"),
    ):
        preflight.lock_run_dir(config)


def test_busy_threads_give_the_interpreter_back_soon() -> None:
    before = sys.getswitchinterval()
    try:
        preflight.share_interpreter()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before)
