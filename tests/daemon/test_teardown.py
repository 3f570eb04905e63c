import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import Config
from snapshotter.daemon import teardown as tearing
from snapshotter.daemon.teardown import teardown, teardown_stopped
from snapshotter.errors import StoreLocked
from snapshotter.keeper.client import find, greet
from snapshotter.plane.erofs.backing import Backing
from snapshotter.plane.erofs.mounting import mount_image
from snapshotter.plane.mounts import call_mount, mounts_below
from snapshotter.service.control_views import TeardownView, UserView
from snapshotter.store.lock import RootLock
from tests.doubles.keepers import await_no_keeper, discharge, wait_for_end
from tests.doubles.raw_fuse import ECONNABORTED, raw_mount, said
from tests.plane.conftest import Place, place_of

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


@pytest.fixture(params=list(Backing))
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A run directory in which two layers are mounted, and by somebody else something that is none."""
    for made in place_of(tmp_path, request.param):
        for number, image in made.images("a", "b").items():
            made.mounts().ensure(number, image)
        made.put("foreign")
        yield made


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


def test_mounts_of_layers_are_taken_away_and_named(layers: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tearing, "find_users", lambda _run, _root: ())
    named = tuple(str(layers.directory / name) for name in ("1", "2", "foreign"))
    assert teardown(layers.folder, layers.folder / "root", force=False) == TeardownView((), named, done=True)
    assert layers.standing() == {}
    assert not layers.directory.exists()


@pytest.mark.usefixtures("detached")
def test_mounts_of_layers_stay_while_somebody_stands_on_them(layers: Place) -> None:
    before = layers.standing()
    assert len(before) == 3
    assert teardown(layers.folder, layers.folder / "root", force=False).done is False
    assert layers.standing() == before


@pytest.mark.usefixtures("detached")
def test_force_takes_the_mounts_of_layers_too(layers: Place) -> None:
    names = ("fuse", "fuse", "e/1", "e/2", "e/foreign")
    named = tuple(str(layers.folder / name) for name in names)
    assert teardown(layers.folder, layers.folder / "root", force=True) == TeardownView((USER,), named, done=True)
    assert layers.standing() == {}


def test_layers_left_by_a_daemon_that_was_killed_are_taken_away_without_one(
    layers: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tearing, "find_users", lambda _run, _root: ())
    config = replace(Config(), root=layers.folder / "absent", run_dir=layers.folder)
    assert len(teardown_stopped(config, force=False).unmounted) == 3
    assert layers.standing() == {}


def test_what_a_killed_trial_of_the_erofs_plane_left_is_taken_away(
    layers: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tearing, "find_users", lambda _run, _root: ())
    root, trial = layers.folder / "root", layers.folder / "p"
    (root / "probe/1").mkdir(parents=True)
    (trial / "e").mkdir(parents=True)
    (trial / "m").mkdir()
    mount_image(layers.image("a"), trial / "e", layers.how, call_mount)
    assert teardown(layers.folder, root, force=False).done
    assert mounts_below(layers.folder) == {}
    assert not trial.exists()
    assert list(root.iterdir()) == []


def test_a_stopped_daemons_keeper_keeps_nothing_any_more_and_ends(tmp_path: Path) -> None:
    config = replace(Config(), root=tmp_path / "root", run_dir=tmp_path / "r")
    config.run_dir.mkdir(mode=0o700)
    with raw_mount(config.run_dir / "fuse") as mount:
        keeper, _ = greet(config.run_dir)
        keeper.put(mount.fd, b"record", minor=mount.minor, deadline_s=0, resend=True, answered=True)
        pid = keeper.pid
        keeper.close()
        # Somebody stands on it: without the mount point the connection would be kept.
        child = mount.ask("trusted.a")
        mount.read()
        assert teardown_stopped(config, force=True).unmounted == (str(config.run_dir / "fuse"),)
        assert wait_for_end(pid)
        mount.close_connection()
        assert said(child) == ECONNABORTED
    await_no_keeper(config.run_dir)


def test_users_of_a_stopped_daemon_leave_the_keeper_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tearing, "find_users", lambda _run, _root: (USER,))
    config = replace(Config(), root=tmp_path / "root", run_dir=tmp_path / "r")
    config.run_dir.mkdir(mode=0o700)
    kept, other = socket.socketpair()
    with kept, other:
        keeper, _ = greet(config.run_dir)
        keeper.put(kept.fileno(), b"record", minor=0, deadline_s=0, resend=True, answered=True)
        keeper.close()
        assert not teardown_stopped(config, force=False).done
        found = find(config.run_dir)
        assert found is not None
        with found:
            assert found.state().keeps
    discharge(config.run_dir)
