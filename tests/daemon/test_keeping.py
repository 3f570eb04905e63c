"""`snapshotter keeper`: a keeper that a service manager starts, before the daemon or beside it."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.daemon.test_main import START_S, Instance, instance
from tests.doubles.keepers import keeper_pid

__all__ = ["instance"]


def start_keeper(instance: Instance) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "snapshotter", "keeper", "--run-dir", str(instance.top / "r")]
    process = subprocess.Popen(
        instance.manager.program(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    instance.running.append(process)
    return process


def await_ready(instance: Instance, process: "subprocess.Popen[str]") -> str:
    return instance.manager.said(lambda: process.poll() is None)


def test_started_before_the_daemon_it_is_ready_when_it_can_be_reached_and_is_the_daemons(instance: Instance) -> None:
    keeper = start_keeper(instance)
    assert await_ready(instance, keeper) == "READY=1"
    run_dir = instance.top / "r"
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert keeper_pid(run_dir) == keeper.pid
    # The slim interpreter: what the command needed is gone.
    assert "click" not in Path(f"/proc/{keeper.pid}/maps").read_text()
    process = instance.start()
    assert instance.status()["keeper_pid"] == keeper.pid
    process.kill()
    process.communicate()
    instance.start()
    answer = instance.status()
    assert (answer["keeper_pid"], answer["take_overs"]) == (keeper.pid, 1)
    instance.teardown()
    # The kernel ends the connection at once or, while a process elsewhere has a copy of the mount, after the daemon let go of it.
    said = "estargz-snapshotter keeper: the FUSE connection ended: its mounts are gone\n"
    assert keeper.communicate(timeout=START_S) in {("", said), ("", "")}
    assert keeper.returncode == 0


def test_where_there_is_one_it_says_so_and_has_not_failed(instance: Instance) -> None:
    instance.start()
    there = instance.status()["keeper_pid"]
    second = start_keeper(instance)
    assert second.communicate(timeout=START_S) == (f"Process {there} is the keeper already.\n", "")
    assert second.returncode == 0
    # Before it was ready it would have failed.
    assert await_ready(instance, second) == f"READY=1\nSTATUS=process {there} is the keeper"
    assert instance.status()["keeper_pid"] == there


def test_one_that_was_killed_is_replaced_by_the_daemon_and_costs_nothing(instance: Instance) -> None:
    keeper = start_keeper(instance)
    await_ready(instance, keeper)
    process = instance.start()
    keeper.kill()
    keeper.communicate()
    while instance.status()["keeper_pid"] in {0, keeper.pid}:
        pass
    assert instance.status()["problems"] == []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    instance.start()
    assert instance.status()["take_overs"] == 1


def test_a_run_directory_that_cannot_be_used_is_one_sentence(instance: Instance) -> None:
    (instance.top / "r").mkdir()
    (instance.top / "r").chmod(0o777)
    process = start_keeper(instance)
    _, err = process.communicate(timeout=START_S)
    assert process.returncode == 2
    assert "others may write in it" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_without_root_it_says_so(instance: Instance) -> None:
    instance.top.chmod(0o755)
    # Imported as root: the clone may lie where nobody else can read.
    code = (
        "import os, snapshotter.daemon.keeping; from snapshotter.cli.main import main; from snapshotter.cli import keeper\n"
        "os.setgroups([]); os.setuid(65534); main()"
    )
    command = [sys.executable, "-c", code, "keeper", "--run-dir", str(instance.top / "r")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 50
    assert "must run as root" in done.stderr.splitlines()[-1]
