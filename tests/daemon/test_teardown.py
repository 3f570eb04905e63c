from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import Config
from snapshotter.daemon import teardown as tearing
from snapshotter.daemon.teardown import teardown, teardown_stopped
from snapshotter.errors import StoreLocked
from snapshotter.service.control import TeardownView, UserView
from snapshotter.store.lock import RootLock

USER = UserView("c1", "default", "/m", (7,))


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    done: list[Path] = []

    def detach(place: Path) -> int:
        done.append(place)
        return 2

    monkeypatch.setattr(tearing, "detach_ours", detach)
    monkeypatch.setattr(tearing, "find_users", lambda _run, _root: (USER,))
    return done


def test_users_keep_everything_in_place(tmp_path: Path, detached: list[Path]) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "1").symlink_to("/x")
    assert teardown(tmp_path, tmp_path / "root", force=False) == TeardownView((USER,), (), done=False)
    assert detached == []
    assert (tmp_path / "l" / "1").is_symlink()


def test_force_detaches_under_users_and_says_so(
    tmp_path: Path, detached: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "1").symlink_to("/x")
    result = teardown(tmp_path, tmp_path / "root", force=True)
    assert result == TeardownView((USER,), (str(tmp_path / "fuse"),) * 2, done=True)
    assert list((tmp_path / "l").iterdir()) == []
    assert "detached under c1" in caplog.text


@pytest.mark.parametrize("held", ["root", "run"])
def test_a_running_daemon_is_not_torn_down_behind_its_back(tmp_path: Path, detached: list[Path], held: str) -> None:
    config = replace(Config(), root=tmp_path / "root", run_dir=tmp_path / "run")
    with RootLock(tmp_path / held), pytest.raises(StoreLocked):
        teardown_stopped(config, force=True)
    assert detached == []


def test_nothing_there_is_nothing_to_do(tmp_path: Path) -> None:
    config = replace(Config(), root=tmp_path / "absent", run_dir=tmp_path / "absent-too")
    assert teardown_stopped(config, force=False) == TeardownView((), (), done=True)
    assert list(tmp_path.iterdir()) == []
