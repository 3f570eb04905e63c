"""The systemd unit says what the daemon relies on."""

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from snapshotter.daemon.ending import TORN_DOWN

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "estargz-snapshotter.service"


def read_unit() -> RawConfigParser:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    unit.read_string(UNIT.read_text())
    return unit


def test_the_daemon_is_ready_before_containerd_and_outlives_hard_times() -> None:
    unit = read_unit()
    assert unit["Unit"]["Before"] == "containerd.service"
    service = unit["Service"]
    expected = {
        "Type": "notify",
        "Restart": "always",
        "KillMode": "process",
        "OOMScoreAdjust": "-999",
        "LimitNOFILE": "1048576",
        "TasksMax": "infinity",
    }
    assert {key: service[key] for key in expected} == expected
    assert service["ExecStart"].endswith("/snapshotter serve")


def test_a_teardown_is_not_undone_by_a_restart() -> None:
    service = read_unit()["Service"]
    assert service["RestartPreventExitStatus"] == service["SuccessExitStatus"] == str(TORN_DOWN)


def test_nothing_hides_the_mounts_from_containerd() -> None:
    hiding = re.compile(
        r"Private|Protect|ReadOnly|ReadWrite|Inaccessible|MountFlags|Bind|TemporaryFile|RuntimeDirectory|RootDir"
    )
    assert [key for key in read_unit()["Service"] if hiding.match(key)] == []


def test_modules_are_loaded_with_capabilities_that_the_daemon_has_not() -> None:
    service = read_unit()["Service"]
    assert service["ExecStartPre"].startswith("+-/sbin/modprobe")
    assert "CAP_SYS_MODULE" not in service["CapabilityBoundingSet"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # The program may not be installed where the unit looks for it.
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/snapshotter", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
