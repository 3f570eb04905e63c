"""A connection is taken over only with the directories that it was mounted for: elsewhere its numbers mean something else."""

import json
import subprocess
import sys
from pathlib import Path

from tests.daemon.test_main import Instance, instance
from tests.doubles.keepers import await_no_keeper

__all__ = ["instance"]


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def status(instance: Instance) -> tuple[int, int]:
    """Session, and how often the connection was taken over."""
    answer = json.loads(instance.command("status", "--json").stdout)
    return answer["session"], answer["take_overs"]


def test_another_root_gets_a_mount_of_its_own(instance: Instance) -> None:
    kill(instance.start())
    kill(instance.start())
    assert not (instance.top / "other").exists()
    instance.start("--root", str(instance.top / "other"))
    assert status(instance) == (1, 0)


def test_a_root_whose_state_is_gone_gets_a_fresh_mount(instance: Instance) -> None:
    kill(instance.start())
    for left in (instance.top / "root").glob("state.db*"):
        left.unlink()
    instance.start()
    assert status(instance)[1] == 0


def test_a_mount_that_is_not_the_last_of_its_root_is_not_taken_over(instance: Instance) -> None:
    kill(instance.start())
    elsewhere = str(instance.top / "q")
    kill(instance.start("--run-dir", elsewhere))
    instance.start()
    assert status(instance) == (3, 0)
    command = [sys.executable, "-m", "snapshotter", "teardown", "--run-dir", elsewhere]
    subprocess.run([*command, "--root", str(instance.top / "unused")], capture_output=True, check=True)
    await_no_keeper(Path(elsewhere))
