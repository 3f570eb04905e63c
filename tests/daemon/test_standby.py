"""A second daemon that waits for the first one, and takes over unless that one was torn down."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.config import Config
from snapshotter.daemon.ending import TORN_DOWN
from snapshotter.daemon.fd_store import RECORD_NAME, record_file
from snapshotter.daemon.notify import Notifier
from snapshotter.daemon.standby import dismiss, expect_followers, stand_by
from snapshotter.errors import StoreError
from snapshotter.store.lock import RootLock
from tests.daemon.test_main import START_S, Instance, instance
from tests.doubles.service_manager import ServiceManager

__all__ = ["instance"]

_STANDBY = """
import sys
from dataclasses import replace
from pathlib import Path
from snapshotter.config import Config
from snapshotter.daemon.notify import Notifier
from snapshotter.daemon.standby import stand_by

top = Path(sys.argv[1])
print(stand_by(replace(Config(), root=top / "root", run_dir=top / "r"), Notifier(), {}))
print("loaded" if "snapshotter.daemon.services" in sys.modules else "not loaded")
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for name in ("root", "r"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as made:
        yield made


def begin(top: Path, manager: ServiceManager) -> "subprocess.Popen[str]":
    environment = os.environ | {"NOTIFY_SOCKET": manager.address}
    return subprocess.Popen([sys.executable, "-c", _STANDBY, top], env=environment, stdout=subprocess.PIPE, text=True)


def test_where_nobody_serves_it_starts_at_once_and_loads_nothing_first(top: Path, manager: ServiceManager) -> None:
    with begin(top, manager) as standby:
        assert standby.communicate(timeout=START_S)[0] == "True\nnot loaded\n"
    assert manager.heard == []


@pytest.mark.parametrize("torn_down", [False, True])
def test_it_has_everything_loaded_and_waits_for_the_end_of_the_other(
    top: Path, manager: ServiceManager, torn_down: bool
) -> None:
    with RootLock(top / "root") as serving, begin(top, manager) as standby:
        try:
            assert manager.said(lambda: standby.poll() is None) == "READY=1\nSTATUS=standing by"
            assert standby.poll() is None
            if torn_down:
                dismiss(top / "r")
            serving.release()
            assert standby.communicate(timeout=START_S)[0] == f"{not torn_down}\nloaded\n"
        finally:
            standby.kill()


def test_it_gives_back_what_was_stored_and_one_that_serves_at_once_does_not(top: Path, manager: ServiceManager) -> None:
    config = replace(Config(), root=top / "root", run_dir=top / "r")
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    kept = record_file(b"record")
    stored = {RECORD_NAME: kept}
    manager.keep(RECORD_NAME, kept)
    assert stand_by(config, notifier, stored)
    assert stored == {RECORD_NAME: kept}
    with RootLock(top / "root") as serving:
        states: list[str] = []

        def release() -> None:
            states.append(manager.said())
            serving.release()

        # It blocks with its own lock: the release comes from here.
        releasing = threading.Thread(target=release)
        releasing.start()
        assert stand_by(config, notifier, stored)
        releasing.join()
        assert states == ["READY=1\nSTATUS=standing by"]
    assert stored == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    assert manager.names == []


def test_a_teardown_of_long_ago_dismisses_nobody(top: Path) -> None:
    dismiss(top / "r")
    config = replace(Config(), root=top / "root", run_dir=top / "r")
    # Nobody was waited for: this is the next start.
    assert stand_by(config, Notifier({}), {})
    expect_followers(top / "r")
    expect_followers(top / "r")
    assert list((top / "r").iterdir()) == []


def test_a_run_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dismiss(tmp_path / "gone")
    assert "would take over" in caplog.text
    (tmp_path / "torn-down").mkdir()
    with pytest.raises(StoreError, match="torn-down"):
        expect_followers(tmp_path)


def test_a_root_without_a_directory_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="root directory"):
        stand_by(replace(Config(), root=tmp_path / "gone", run_dir=tmp_path), Notifier({}), {})


def test_the_one_that_stood_by_serves_after_a_kill_and_ends_with_a_teardown(instance: Instance) -> None:
    first = instance.start("--standby")
    second = instance.start("--standby")
    assert instance.status()["pid"] == first.pid
    first.kill()
    first.communicate()
    instance.await_ready(second)
    answer = instance.status()
    assert (answer["pid"], answer["take_overs"], answer["session"]) == (second.pid, 1, 1)
    third = instance.start("--standby")
    done = instance.teardown("--json")
    assert json.loads(done.stdout)["done"], done.stderr
    for process in (second, third):
        process.communicate(timeout=START_S)
        assert process.returncode == TORN_DOWN


def test_one_that_stands_by_ends_at_a_signal(instance: Instance) -> None:
    instance.start()
    standby = instance.start("--standby")
    standby.send_signal(signal.SIGTERM)
    standby.communicate(timeout=START_S)
    assert standby.returncode == -signal.SIGTERM
    assert instance.command("status").returncode == 0
