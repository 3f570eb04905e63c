"""Real trials in real directories, and the daemon's word where there is a daemon."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.api import control_pb2 as pb
from snapshotter.doctor import planes
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Verdict
from snapshotter.errors import DaemonUnreachable
from tests.doctor.world import World, look, the_one

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


def asked(world: World, **other: object) -> Answer:
    subject = world.subject(**other)
    return the_one(look(planes.checks(subject, Once(world.voice.status)), "plane"))


def traces(world: World) -> set[str]:
    mounts = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(world.top) in line}
    return mounts | {str(path) for path in world.top.rglob("*")}


def test_without_a_daemon_the_planes_are_tried_and_nothing_stays(world: World) -> None:
    before = traces(world)
    answer = asked(world)
    assert answer.verdict in (Verdict.OK, Verdict.NOTE)
    assert answer.found.startswith("tried: the ")
    assert traces(world) == before


def test_the_fuse_plane_alone_is_tried_where_it_is_configured(world: World) -> None:
    world.config = replace(world.config, plane="fuse")
    answer = asked(world)
    assert answer.verdict is Verdict.NOTE
    assert "the fuse plane would run: configured" in answer.found


def test_directories_that_are_not_there_are_not_made(world: World) -> None:
    world.config = replace(world.config, root=world.top / "a/b", run_dir=world.top / "c/d")
    assert asked(world).found.startswith("tried: ")
    assert not (world.top / "a").exists()
    assert not (world.top / "c").exists()


def test_a_full_cache_loses_nothing_to_a_trial(world: World) -> None:
    cached = world.root / "objects" / "place" / "file"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    asked(world)
    assert cached.read_bytes() == b"x"


def test_what_a_killed_trial_left_is_taken_away_by_the_next(world: World) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; import snapshotter.doctor.planes as planes\n"
        "with planes._corner(Path(sys.argv[1])) as corner:\n"
        "    planes.open_connection(corner / 'fuse'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, world.run_dir], check=False, timeout=60)
    assert any(world.run_dir.iterdir())
    asked(world)
    assert not any(world.run_dir.iterdir())


def test_a_daemon_that_runs_is_asked_and_nothing_tried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "open_connection", None)
    monkeypatch.setattr(planes, "probe", None)
    world.voice.answer = pb.StatusResponse(plane="fuse", plane_reason="this kernel has no EROFS")
    with world.listening():
        answer = asked(world)
    assert (answer.verdict, answer.found) == (
        Verdict.NOTE,
        "the daemon runs the fuse plane: this kernel has no EROFS",
    )


def test_a_daemon_that_does_not_say_is_not_disturbed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "open_connection", None)
    world.voice.failure = DaemonUnreachable("it is stuck")
    with world.listening():
        assert asked(world).verdict is Verdict.SKIPPED


def test_without_root_nothing_is_tried(world: World) -> None:
    answer = asked(world, uid=1000)
    assert answer.verdict is Verdict.SKIPPED
    assert "root" in answer.advice
