import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import CacheConfig
from snapshotter.doctor import installation
from snapshotter.doctor.findings import Answer, Verdict
from tests.doctor.world import World, look, the_one, verdicts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon's directories belong to root")

TIB = 1 << 40


def asked(world: World, name: str, **other: object) -> list[Answer]:
    return look(installation.checks(world.subject(**other)), name)


def test_a_healthy_installation_is_in_order(world: World) -> None:
    with world.listening():
        for name in ("program", "configuration", "root", "run directory", "disk", "socket"):
            assert set(verdicts(asked(world, name)).values()) == {Verdict.OK}, name


def test_a_wrong_configuration_is_a_fault_and_says_that_defaults_are_checked(world: World) -> None:
    answer = the_one(asked(world, "configuration", config_fault="x.toml: rot: no such key; did you mean root?"))
    assert answer.verdict is Verdict.FAULT
    assert "defaults" in answer.found


def test_a_configuration_that_only_root_may_read_is_no_fault_for_others(world: World) -> None:
    answer = the_one(asked(world, "configuration", config_fault="x: no permission to read it", uid=1000))
    assert answer.verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o700, Verdict.OK), (0o755, Verdict.WARNING), (0o770, Verdict.FAULT), (0o777, Verdict.FAULT)]
)
@pytest.mark.parametrize("name", ["root", "run directory"])
def test_directories_are_for_root_alone(world: World, name: str, mode: int, verdict: Verdict) -> None:
    (world.root if name == "root" else world.run_dir).chmod(mode)
    answer = asked(world, name)[0]
    assert answer.verdict is verdict
    assert verdict is Verdict.OK or answer.advice.startswith("chmod 0700 /")


def test_a_directory_of_somebody_else_is_a_fault(world: World) -> None:
    os.chown(world.root, 65534, 65534)
    answer = asked(world, "root")[0]
    assert answer.verdict is Verdict.FAULT
    assert answer.advice.startswith("chown root:root ")


def test_a_file_in_place_of_a_directory_is_a_fault(world: World) -> None:
    world.run_dir.rmdir()
    world.run_dir.touch()
    assert the_one(asked(world, "run directory")).verdict is Verdict.FAULT


def test_a_directory_that_is_not_there_yet_is_worth_knowing(world: World) -> None:
    world.root.rmdir()
    assert the_one(asked(world, "root")).verdict is Verdict.NOTE


@pytest.mark.parametrize("fs_type", ["nfs4", "tmpfs", "overlay", "fuse.glusterfs"])
def test_a_file_system_that_does_not_suit_root_is_a_warning(world: World, fs_type: str) -> None:
    world.write("proc/self/mountinfo", f"1 0 8:1 / / rw - {fs_type} x rw\n")
    found = verdicts(asked(world, "root"), "root")
    assert found == {"root": Verdict.OK, "file system": Verdict.WARNING}
    assert verdicts(asked(world, "run directory"), "run directory") == {"run directory": Verdict.OK}


def test_too_little_room_is_a_fault_and_a_quota_beyond_the_disk_a_warning(world: World) -> None:
    world.config = replace(world.config, cache=CacheConfig(min_free=1 << 50, quota=1 << 51))
    assert verdicts(asked(world, "disk"), "disk") == {"disk": Verdict.FAULT, "quota": Verdict.WARNING}


@pytest.mark.parametrize(("free", "verdict"), [(0, Verdict.FAULT), (50, Verdict.WARNING), (50_000, None)])
def test_inodes_that_run_out_are_told(
    world: World, free: int, verdict: Verdict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(world.root)

    class Status:
        f_bavail, f_blocks, f_frsize = real.f_bavail, real.f_blocks, real.f_frsize
        f_files, f_favail = 100_000, free

    monkeypatch.setattr(os, "statvfs", lambda _path: Status)
    assert verdicts(asked(world, "disk"), "disk").get("inodes") is verdict


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, Verdict.OK), (0o660, Verdict.FAULT), (0o666, Verdict.FAULT)])
def test_the_socket_is_for_root_alone(world: World, mode: int, verdict: Verdict) -> None:
    with world.listening():
        world.socket.chmod(mode)
        answer = the_one(asked(world, "socket"))
    assert answer.verdict is verdict
    assert verdict is Verdict.OK or answer.advice == f"chmod 0600 {world.socket}"


def test_a_socket_of_somebody_else_or_no_socket_is_a_fault(world: World) -> None:
    with world.listening():
        os.chown(world.socket, 65534, 65534)
        assert the_one(asked(world, "socket")).verdict is Verdict.FAULT
    world.socket.unlink()
    assert the_one(asked(world, "socket")).verdict is Verdict.SKIPPED
    world.socket.write_text("")
    assert the_one(asked(world, "socket")).verdict is Verdict.FAULT


def test_nothing_below_the_fuse_mount_is_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for name in ("lstat", "stat", "open", "scandir", "listdir"):
        real = getattr(os, name)

        def spy(path: object, *args: object, real: object = real, **more: object) -> object:
            opened.append(os.fspath(path) if isinstance(path, str | Path) else "")
            return real(path, *args, **more)  # type: ignore[operator]

        monkeypatch.setattr(os, name, spy)
    for check in installation.checks(world.subject()):
        list(check.look())
    assert [path for path in opened if path.startswith(f"{world.run_dir}/")] == []


def test_a_socket_can_have_been_left(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(world.socket))
        world.socket.chmod(0o600)
    assert the_one(asked(world, "socket")).verdict is Verdict.OK  # the check of the daemon says that it has ended
