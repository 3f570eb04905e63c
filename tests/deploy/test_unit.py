"""The systemd units say what daemon and keeper rely on."""

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from snapshotter.daemon.ending import TORN_DOWN
from snapshotter.daemon.fd_store import NAMES

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
DAEMON, KEEPER, STANDBY = (f"estargz-snapshotter{kind}.service" for kind in ("", "-keeper", "-standby"))
SERVING = pytest.mark.parametrize("name", [DAEMON, STANDBY])
# systemd 254 and later; older ones warn and go on.
NEWER = re.compile(r"^.*Unknown key 'FileDescriptorStorePreserve' in section \[Service\], ignoring\.\n", re.MULTILINE)


def read_unit(name: str) -> RawConfigParser:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    unit.read_string((SYSTEMD / name).read_text())
    return unit


def without_newer_keys(said: str) -> str:
    """What systemd says of units, but for keys that it does not know yet."""
    return NEWER.sub("", said)


@SERVING
def test_a_daemon_is_ready_before_containerd_and_outlives_hard_times(name: str) -> None:
    service = read_unit(name)["Service"]
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "Restart": "always",
        "KillMode": "process",
        "OOMScoreAdjust": "-999",
        "LimitNOFILE": "1048576",
        "TasksMax": "infinity",
    }
    assert {key: service[key] for key in expected} == expected
    assert service["ExecStart"].endswith("/snapshotter serve --standby")
    assert read_unit(DAEMON)["Unit"]["Before"] == "containerd.service"


@SERVING
def test_a_teardown_is_not_undone_by_a_restart(name: str) -> None:
    service = read_unit(name)["Service"]
    assert service["RestartPreventExitStatus"] == service["SuccessExitStatus"] == str(TORN_DOWN)


@SERVING
def test_a_daemon_that_ends_is_there_again_at_once_however_often(name: str) -> None:
    unit = read_unit(name)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["RestartSec"] in {"0", "10ms"}


@SERVING
def test_systemd_holds_a_second_copy_of_the_connection_also_while_the_unit_is_stopped(name: str) -> None:
    service = read_unit(name)["Service"]
    assert int(service["FileDescriptorStoreMax"]) >= 2 * len(NAMES)
    assert service["FileDescriptorStorePreserve"] == "yes"
    assert not {key for key in service if key.startswith("ExecStop")}


@SERVING
def test_the_keeper_is_there_before_a_daemon_and_no_daemon_needs_it(name: str) -> None:
    unit = read_unit(name)["Unit"]
    assert unit["Wants"] == KEEPER
    assert KEEPER in unit["After"].split()
    assert not {"Requires", "BindsTo", "PartOf", "Requisite"} & set(unit)


def test_the_keeper_is_ended_by_nothing_that_ends_a_daemon() -> None:
    unit = read_unit(KEEPER)
    assert not {"Requires", "BindsTo", "PartOf", "Requisite", "After", "Wants"} & set(unit["Unit"])
    assert unit["Unit"]["Before"] == DAEMON
    service = unit["Service"]
    expected = {"Type": "notify", "Restart": "no", "CapabilityBoundingSet": "CAP_SYS_ADMIN", "OOMScoreAdjust": "-999"}
    assert {key: service[key] for key in expected} == expected
    assert service["ExecStart"].endswith("/snapshotter keeper")


def test_a_daemon_that_stands_by_is_like_the_other_one() -> None:
    assert dict(read_unit(STANDBY)["Service"]) == dict(read_unit(DAEMON)["Service"])


@pytest.mark.parametrize("name", [DAEMON, KEEPER, STANDBY])
def test_no_unit_has_mounts_of_its_own(name: str) -> None:
    """The daemon's would be hidden from containerd; a keeper's copy would keep a mount alive."""
    hiding = re.compile(
        r"Private|Protect|ReadOnly|ReadWrite|Inaccessible|MountFlags|Bind|TemporaryFile|RuntimeDirectory|RootDir"
    )
    assert [key for key in read_unit(name)["Service"] if hiding.match(key)] == []


@SERVING
def test_modules_are_loaded_with_capabilities_that_the_daemon_has_not(name: str) -> None:
    service = read_unit(name)["Service"]
    assert service["ExecStartPre"].startswith("+-/sbin/modprobe")
    assert "CAP_SYS_MODULE" not in service["CapabilityBoundingSet"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_them_nor_a_circle(tmp_path: Path) -> None:
    for unit in SYSTEMD.iterdir():
        # The program may not be installed where the units look for it.
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/local/bin/snapshotter", "/bin/true"))
    words = ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, without_newer_keys(done.stderr)) == (0, "")
