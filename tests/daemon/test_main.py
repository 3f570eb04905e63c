"""The daemon as a process, with real mounts below a short scratch directory."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from integration.harness.leftovers import Traces
from integration.harness.process import wait_for
from snapshotter.daemon.fd_store import NAMES
from snapshotter.keeper.client import greet
from snapshotter.plane.fuse.record import decode_record
from snapshotter.plane.mounts import detach, mounts_on
from tests.doubles.keepers import await_no_keeper, keeper_pid
from tests.doubles.service_manager import ServiceManager

START_S = 120.0


@dataclass
class Instance:
    """Directories of one daemon, and the service manager that it reports to."""

    top: Path
    manager: ServiceManager
    running: list[subprocess.Popen[str]]

    @property
    def mountpoint(self) -> Path:
        return self.top / "r" / "fuse"

    def start(self, *options: str, wait: bool = True, program: Sequence[str] = ()) -> "subprocess.Popen[str]":
        """Run the daemon, by `program` if that is given; `wait` until it serves."""
        command = [*program, sys.executable, "-m", "snapshotter", "serve", "--root", str(self.top / "root")]
        command += ["--run-dir", str(self.top / "r"), "--log-format", "json", *options]
        environment = os.environ | {"NOTIFY_SOCKET": self.manager.address}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        if wait:
            self.await_ready(process)
        return process

    def await_ready(self, process: "subprocess.Popen[str]") -> None:
        """Return when it says that it serves."""
        while not self.manager.said(lambda: process.poll() is None).startswith("READY=1\n"):
            pass

    def status(self) -> Any:
        """What `snapshotter status` shows."""
        done = self.command("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "snapshotter", *arguments, "--address", str(self.top / "r/snapshotter.sock")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S)

    def teardown(self, *options: str) -> "subprocess.CompletedProcess[str]":
        return self.command("teardown", "--root", str(self.top / "root"), "--run-dir", str(self.top / "r"), *options)


@pytest.fixture
def instance() -> Iterator[Instance]:
    with (
        tempfile.TemporaryDirectory(prefix="ed-", dir="/tmp") as scratch,
        ServiceManager(Path(scratch)) as manager,
    ):
        made = Instance(Path(scratch), manager, [])
        traces = Traces(os.urandom(8).hex(), made.top)
        try:
            with traces.marked():
                yield made
        finally:
            for process in made.running:
                with process:
                    process.kill()
            while mounts_on(made.mountpoint):
                detach(made.mountpoint)
            # Without a mount there is nothing to keep.
            await_no_keeper(made.top / "r")
            # Workers of a daemon that was killed end by themselves, some tenths of a second later.
            wait_for(lambda: not traces.left(), "the end of all that a test has started", START_S)


def end(process: "subprocess.Popen[str]", number: int) -> tuple[int, list[str]]:
    process.send_signal(number)
    _, err = process.communicate(timeout=START_S)
    return process.returncode, [json.loads(line)["message"] for line in err.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_means_it_answers_and_a_signal_ends_it_with_the_mount_in_place(instance: Instance, number: int) -> None:
    process = instance.start()
    answer = instance.status()
    assert answer["pid"] == process.pid
    assert answer["plane"] in {"erofs", "fuse"}
    assert answer["problems"] == []
    assert answer["take_overs"] == 0
    assert answer["keeper_pid"] == keeper_pid(instance.top / "r") != 0
    assert os.stat(instance.top / "r/snapshotter.sock").st_mode & 0o777 == 0o600
    assert os.stat(instance.top / "r").st_mode & 0o777 == 0o700
    assert os.stat(instance.top / "root").st_mode & 0o777 == 0o700
    code, messages = end(process, number)
    assert code == 0
    assert messages[-1] == "stopped; mounts stay in place"
    assert len(mounts_on(instance.mountpoint)) == 1
    assert instance.manager.said() == "STOPPING=1"
    assert keeper_pid(instance.top / "r") == answer["keeper_pid"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_one_goes_on_with_session_and_mount(instance: Instance, number: int) -> None:
    first = instance.start()
    before, (mount,) = instance.status(), mounts_on(instance.mountpoint)
    end(first, number)
    instance.start()
    answer = instance.status()
    assert (answer["session"], answer["take_overs"]) == (before["session"], 1)
    assert answer["keeper_pid"] == before["keeper_pid"]
    assert answer["containers_to_restart"] == []
    assert mounts_on(instance.mountpoint) == [mount]


def test_without_keeper_and_store_the_next_one_mounts_afresh_on_one_mount(instance: Instance) -> None:
    first = instance.start()
    keeper = instance.status()["keeper_pid"]
    # Stopped, so that it starts no other keeper.
    first.send_signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    first.kill()
    first.communicate()
    instance.start()
    answer = instance.status()
    assert (answer["session"], answer["take_overs"]) == (2, 0)
    assert answer["keeper_pid"] not in {0, keeper}
    assert len(mounts_on(instance.mountpoint)) == 1


def test_a_connection_that_this_version_cannot_serve_is_given_up_and_a_fresh_one_mounted(instance: Instance) -> None:
    """The process starts once more for it: pyfuse3 serves one connection in its life."""
    end(instance.start(), signal.SIGTERM)
    keeper, kept = greet(instance.top / "r")
    assert kept is not None
    record = decode_record(kept.record)
    # Another libfuse had agreed to it: max_write is the field at 36.
    reply = record.reply[:36] + (1 << 17).to_bytes(4, "little") + record.reply[40:]
    minor = int(record.device.partition(":")[2])
    with keeper:
        keeper.put(
            kept.fd, replace(record, reply=reply).encode(), minor=minor, deadline_s=0, resend=True, answered=True
        )
    os.close(kept.fd)
    process = instance.start(program=instance.manager.program())
    answer = instance.status()
    assert (answer["session"], answer["take_overs"], answer["pid"]) == (2, 0, process.pid)
    assert answer["problems"] == []
    assert len(mounts_on(instance.mountpoint)) == 1
    assert sorted(instance.manager.names) == sorted(NAMES)
    _, messages = end(process, signal.SIGTERM)
    assert any(
        "cannot be taken over, a fresh one is mounted: this libfuse agrees to requests of 1048576 bytes" in message
        for message in messages
    )


def test_a_second_instance_is_refused_and_the_first_goes_on(instance: Instance) -> None:
    first = instance.start()
    second = instance.start(wait=False)
    _, err = second.communicate(timeout=START_S)
    assert second.returncode == 32
    assert f"in use by process {first.pid}" in err
    other_root = instance.start("--root", str(instance.top / "other"), wait=False)
    _, err = other_root.communicate(timeout=START_S)
    assert other_root.returncode == 32
    assert f"run directory {instance.top / 'r'} is in use by process {first.pid}" in err
    assert instance.command("status").returncode == 0


def test_teardown_unmounts_and_ends_the_daemon_with_its_own_code(instance: Instance) -> None:
    process = instance.start()
    done = instance.teardown("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"users": [], "unmounted": [str(instance.mountpoint)], "done": True}
    process.communicate(timeout=START_S)
    assert process.returncode == 3
    assert mounts_on(instance.mountpoint) == []
    assert instance.manager.names == []
    await_no_keeper(instance.top / "r")


def test_teardown_works_when_the_daemon_is_gone(instance: Instance) -> None:
    process = instance.start()
    end(process, signal.SIGKILL)
    done = instance.teardown()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"unmounted {instance.mountpoint}\n"
    assert mounts_on(instance.mountpoint) == []
    assert instance.teardown().stdout == "Nothing was mounted.\n"


def test_a_mount_taken_away_by_hand_ends_the_daemon_with_a_sentence(instance: Instance) -> None:
    process = instance.start()
    detach(instance.mountpoint)
    _, err = process.communicate(timeout=START_S)
    assert process.returncode == 50
    assert "was unmounted" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("database", ["state.db", "cache.db"])
def test_a_directory_of_a_newer_version_is_refused_with_a_sentence(instance: Instance, database: str) -> None:
    end(instance.start(), signal.SIGTERM)
    path = instance.top / "root" / database
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("PRAGMA user_version=999")
    before = path.read_bytes()
    process = instance.start(wait=False)
    _, err = process.communicate(timeout=START_S)
    assert process.returncode == 33
    assert "run the newer version again" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--run-dir", "/tmp/a-long-directory-name"), 2, "at most 20"),
        (("--config", "/nonexistent.toml"), 2, "no such configuration file"),
        (("--run-dir", "/tmp"), 2, "others may write in it"),
    ],
)
def test_a_start_that_cannot_work_is_one_sentence(
    instance: Instance, options: tuple[str, ...], code: int, words: str
) -> None:
    process = instance.start(*options, wait=False)
    _, err = process.communicate(timeout=START_S)
    assert process.returncode == code
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_without_root_it_says_so(instance: Instance) -> None:
    instance.top.chmod(0o755)
    # Imported as root: the clone may lie where nobody else can read, such as root's home.
    code = (
        "import os, snapshotter.daemon.main; from snapshotter.cli.main import main; from snapshotter.cli import serve\n"
        "os.setgroups([]); os.setuid(65534); main()"
    )
    command = [sys.executable, "-c", code, "serve"]
    command += ["--root", str(instance.top / "root"), "--run-dir", str(instance.top / "r")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 50
    assert "must run as root" in done.stderr.splitlines()[-1]


def test_a_start_that_fails_for_its_address_mounts_nothing(instance: Instance) -> None:
    taken = instance.top / "taken"
    taken.write_text("mine")
    process = instance.start("--address", str(taken), wait=False)
    _, err = process.communicate(timeout=START_S)
    assert process.returncode == 2
    assert "not a socket" in err.splitlines()[-1]
    assert taken.read_text() == "mine"
    assert str(instance.top) not in Path("/proc/self/mountinfo").read_text()
