"""Under a service manager that stores descriptors: what it holds brings a node back from the loss of daemon and keeper."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.conftest import ALONE
from integration.harness.containerd import CommandFailed
from integration.harness.daemon import SNAPSHOTTER, Daemon
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.harness.scratch import scratch
from integration.harness.tasks import Task
from integration.images.trial import PROBE, content, expected
from snapshotter.daemon.fd_store import NAMES
from tests.doubles.keepers import wait_for_end
from tests.doubles.service_manager import ServiceManager

STARTED = (sys.executable, *SNAPSHOTTER[1:])


@pytest.fixture
def managed(registry: Registry, trial_image: str, plane: str) -> Iterator[tuple[Node, ServiceManager]]:
    """A node whose daemon is a service of a manager that stores descriptors."""
    with ExitStack() as undo:
        manager = undo.enter_context(ServiceManager(undo.enter_context(scratch()).folder))

        def begin(daemon: Daemon) -> Path:
            daemon.program = manager.program(*STARTED)
            return daemon.address

        yield undo.enter_context(node(registry, settings=ALONE, plane=plane, before=begin)), manager


def lose_daemon_and_keeper(this: Node) -> None:
    """Both end at once, as with a kill of their control groups; returns when both are gone."""
    keeper = this.daemon.json("status")["keeper_pid"]
    # It must not start another in between.
    os.kill(this.daemon.process.pid, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    this.daemon.stop(signal.SIGKILL)
    assert wait_for_end(keeper)


def wait_until_kept(manager: ServiceManager, *names: str) -> None:
    """The manager hears of it in a thread of its own."""
    wait_for(lambda: sorted(manager.names) == sorted(names), f"a store with {names}")


def reads(task: Task, folder: str, number: int) -> None:
    assert task.exec(PROBE, "read", f"/{folder}/{number}") == expected(content(folder, number))


def test_with_daemon_and_keeper_gone_containers_read_on(managed: tuple[Node, ServiceManager], trial_image: str) -> None:
    this, manager = managed
    this.pull(trial_image)
    task = Task(this, "reader", trial_image)
    reads(task, "restart", 1)
    wait_until_kept(manager, *NAMES)
    for round_ in range(1, 4):
        before, mounts = this.daemon.json("status"), this.mounts()
        lose_daemon_and_keeper(this)
        this.daemon.start()
        after = this.daemon.json("status")
        assert (after["session"], after["take_overs"]) == (before["session"], before["take_overs"] + 1), round_
        assert after["keeper_pid"] not in {0, before["keeper_pid"]}
        assert (after["problems"], after["containers_to_restart"]) == ([], [])
        assert this.mounts() == mounts
        # What was there, and what was never asked for.
        reads(task, "restart", 1)
        reads(task, "restart", 1 + round_)
        wait_until_kept(manager, *NAMES)
    assert this.daemon.log().count("comes from the service manager's store") == 3
    # Between two such losses the keeper has it again: what it keeps tells more.
    this.daemon.stop(signal.SIGKILL)
    this.daemon.start()
    assert this.daemon.log().count("comes from the service manager's store") == 3
    task.remove()


def test_with_everything_gone_status_names_who_must_be_started_again_until_it_is(
    managed: tuple[Node, ServiceManager], trial_image: str
) -> None:
    this, manager = managed
    this.pull(trial_image)
    tasks = {name: Task(this, name, trial_image) for name in ("first", "second")}
    for task in tasks.values():
        reads(task, "restart", 1)
    before = this.daemon.json("status")
    lose_daemon_and_keeper(this)
    manager.lose()
    this.daemon.start()
    this.wait_until_served()
    after = this.daemon.json("status")
    assert after["session"] > before["session"]
    assert sorted(after["containers_to_restart"]) == ["k8s.io/first", "k8s.io/second"]
    said = "\n".join(after["problems"])
    assert all(words in said for words in ("connection that was lost", "k8s.io/first", "k8s.io/second"))
    assert (
        "the FUSE connection of the daemon before is lost; start these containers again: k8s.io/" in this.daemon.log()
    )
    # A fresh mount is no help to them, and a restart of the daemon none to us.
    with pytest.raises(CommandFailed):
        reads(tasks["first"], "restart", 2)
    this.restart_snapshotter()
    assert len(this.daemon.json("status")["containers_to_restart"]) == 2
    # A new one is not concerned.
    new = Task(this, "third", trial_image)
    reads(new, "restart", 3)
    for name, left in (("first", ["k8s.io/second"]), ("second", [])):
        tasks[name].stop()
        tasks[name].start()
        reads(tasks[name], "restart", 4)
        assert this.daemon.json("status")["containers_to_restart"] == left
    assert this.daemon.json("status")["problems"] == []
    for task in (new, *tasks.values()):
        task.remove()


def test_a_teardown_leaves_nothing_with_keeper_and_manager(
    managed: tuple[Node, ServiceManager], trial_image: str
) -> None:
    this, manager = managed
    keeper = this.daemon.json("status")["keeper_pid"]
    this.daemon.command("teardown")
    wait_for(lambda: not this.daemon.process.running, "the end of the daemon", 60)
    assert wait_for_end(keeper)
    wait_until_kept(manager)
    this.daemon.start()
    assert this.daemon.json("status")["take_overs"] == 0
