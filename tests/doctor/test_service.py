import os
import time
from pathlib import Path

import pytest

from snapshotter import __version__
from snapshotter.api import control_pb2 as pb
from snapshotter.doctor import service
from snapshotter.doctor.examination import Once, examine
from snapshotter.doctor.findings import Answer, Verdict
from tests.doctor.world import MOUNTINFO, World, look, the_one, verdicts

RUNNING = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
UNIT = Path(__file__).parents[2] / "deploy/systemd" / service.UNIT


def asked(world: World, name: str, **other: object) -> list[Answer]:
    return look(service.checks(world.subject(**other), Once(world.voice.status)), name)


def answering(world: World, **other: object) -> None:
    values = {"version": __version__, "pid": 1, "root": str(world.root), "run_dir": str(world.run_dir)}
    world.voice.answer = pb.StatusResponse(**{**values, "started_at_ns": time.time_ns(), **other})  # type: ignore[arg-type]


def unit(world: World, script: str) -> list[Answer]:
    """What is said of the unit where systemctl is this shell script."""
    (world.top / "run/systemd/system").mkdir(parents=True)
    program = world.write("systemctl", f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return asked(world, "unit", machine_systemctl=str(program))


def shown(world: World, **properties: str) -> dict[str, Verdict]:
    lines = "\n".join(f"{name}={value}" for name, value in {**RUNNING, **properties}.items())
    return verdicts(unit(world, f"cat <<'END'\n{lines}\nEND"), "unit")


def test_a_daemon_that_answers_is_in_order(world: World) -> None:
    answering(world)
    with world.listening():
        assert verdicts(asked(world, "daemon"), "daemon") == {"daemon": Verdict.OK}


def test_no_daemon_is_a_fault_that_says_how_to_start_one(world: World) -> None:
    answer = the_one(asked(world, "daemon"))
    assert answer.verdict is Verdict.FAULT
    assert "systemctl start" in answer.advice


def test_another_version_and_complaints_of_the_daemon_are_warnings(world: World) -> None:
    answering(world, version="0.0.1", problems=["registry x failed last: y"])
    with world.listening():
        answers = asked(world, "daemon")
    assert verdicts(answers, "daemon") == {"daemon": Verdict.WARNING, "daemon says": Verdict.WARNING}
    assert "restart" in answers[0].advice


def test_a_daemon_with_other_directories_than_configured_is_told(world: World) -> None:
    answering(world, root="/var/lib/other")
    with world.listening():
        assert verdicts(asked(world, "daemon"), "daemon")["daemon's files"] is Verdict.WARNING


def test_a_configuration_younger_than_the_daemon_is_told(world: World) -> None:
    path = world.write("config.toml", "")
    answering(world, started_at_ns=path.stat().st_mtime_ns - 1)
    with world.listening():
        assert verdicts(asked(world, "daemon", config_path=path), "daemon")["daemon's files"] is Verdict.NOTE


def test_mounts_of_a_daemon_that_has_ended_are_a_warning(world: World) -> None:
    assert the_one(asked(world, "leftovers")).verdict is Verdict.OK
    ours = f"40 23 0:77 / {world.run_dir}/fuse ro - fuse.estargz estargz ro\n"
    erofs = f"41 23 0:78 / {world.run_dir}/e/7 ro - erofs /x ro\n"
    world.write("proc/self/mountinfo", MOUNTINFO + ours + erofs)
    answer = the_one(asked(world, "leftovers"))
    assert answer.verdict is Verdict.WARNING
    assert answer.found.startswith("2 mounts")
    with world.listening():
        assert the_one(asked(world, "leftovers")).verdict is Verdict.SKIPPED


def test_without_systemd_the_unit_is_no_matter(world: World) -> None:
    assert the_one(asked(world, "unit")).verdict is Verdict.NOTE


def test_a_unit_that_runs_and_starts_with_the_node_is_in_order(world: World) -> None:
    properties = {name: "no" for name in service._HIDING if name.startswith("P")}
    assert shown(world, **properties, MountFlags="shared", ReadOnlyPaths="") == {"unit": Verdict.OK}


def test_a_unit_that_is_not_installed_is_a_warning(world: World) -> None:
    assert shown(world, LoadState="not-found", ActiveState="inactive") == {"unit": Verdict.WARNING}


@pytest.mark.parametrize(("state", "sub"), [("failed", "failed"), ("activating", "auto-restart")])
def test_a_unit_that_does_not_stay_up_is_a_fault(world: World, state: str, sub: str) -> None:
    assert shown(world, ActiveState=state, SubState=sub, NRestarts="12") == {"unit": Verdict.FAULT}


def test_a_unit_that_is_not_enabled_is_a_warning(world: World) -> None:
    assert shown(world, UnitFileState="disabled") == {"unit": Verdict.OK, "unit at boot": Verdict.WARNING}


@pytest.mark.parametrize(
    "setting",
    ["PrivateTmp=yes", "PrivateMounts=yes", "ProtectSystem=strict", "ReadOnlyPaths=/usr", "RuntimeDirectory=estargz"],
)
def test_a_setting_that_hides_mounts_is_a_fault(world: World, setting: str) -> None:
    name, _, value = setting.partition("=")
    assert shown(world, **{name: value}) == {"unit": Verdict.OK, "unit's mounts": Verdict.FAULT}


def test_our_own_unit_has_none_of_the_settings_that_hide_mounts() -> None:
    named = {line.partition("=")[0] for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#"}
    assert named & {*service._HIDING, "RuntimeDirectory"} == set()


def test_systemctl_that_hangs_or_fails_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(TimeoutError, match="did not answer"):
        patch.setattr(service, "_SYSTEMCTL_TIMEOUT_S", 0.3)
        unit(world, "exec sleep 60")
    world.write("systemctl", "#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
    subject = world.subject(machine_systemctl=str(world.top / "systemctl"))
    findings = list(examine(service.checks(subject, Once(world.voice.status)), 30.0))
    (found,) = (one for one in findings if one.name == "unit")
    assert found.verdict is Verdict.FAULT
    assert "Failed to connect to bus" in found.found


def test_a_daemon_that_only_root_may_ask_is_skipped(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root to become another")
    with world.listening():
        world.top.chmod(0o700)
        os.seteuid(65534)
        try:
            answer = the_one(asked(world, "daemon"))
        finally:
            os.seteuid(0)
    assert answer.verdict is Verdict.SKIPPED
