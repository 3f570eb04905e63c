"""While a container copies a directory of the fuse plane up, the kernel holds the rename lock of the disk and asks the daemon.

Whoever renames from one directory to another on that disk waits meanwhile, and so does every mount of an overlay. A
daemon that did either before it answers would wait for itself, and with it everybody else on the disk.

Source: Linux fs/overlayfs/copy_up.c, ovl_copy_up_workdir: ovl_copy_up_metadata runs under lock_rename.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.node import Node
from integration.harness.process import wait_for

DISK = 256 << 20
"""A disk of the test's own: others must not wait for its lock."""

# The name is looked up before: nothing but the copying then waits for the daemon.
COPIER = "[ -e /tree/new ]; trap 'echo x > /tree/new; echo changed $?' USR1; echo ready; /bin/busybox sleep 1000 & wait; wait"
NAME = "copier"


def waits_in_copy_up(pid: int) -> bool:
    """Whether a process is just being kept waiting there. Source: proc(5), /proc/pid/stack."""
    return "ovl_copy_up" in Path(f"/proc/{pid}/stack").read_text()


def alone(this: Node, word: str) -> int:
    """The process in a container that has `word` among its arguments: what it starts has them until it is another program."""
    seen: list[int] = []

    def look() -> bool:
        seen[:] = this.processes(word)
        return len(seen) == 1

    wait_for(look, f"one process with {word}")
    return seen[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_daemon_starts_while_the_rename_lock_of_its_disk_waits_for_it(
    start_node: StartNode, trial_image: str, number: signal.Signals
) -> None:
    this = start_node(ALONE, plane="fuse", disk=DISK)
    box = this.start(this.pull(trial_image), "/bin/busybox", "sh", "-c", COPIER, NAME)
    wait_for(box.has_printed, "the container's first word")
    pid = alone(this, NAME)
    one, two = this.daemon.root / "one", this.daemon.root / "two"
    one.mkdir()
    two.mkdir()
    this.daemon.stop(number)
    os.kill(pid, signal.SIGUSR1)
    wait_for(lambda: waits_in_copy_up(pid), "the wait for the daemon")
    (one / "file").touch()
    with ThreadPoolExecutor(1) as thread:
        # Nobody else gets the lock: that is what the daemon must do without.
        renaming = thread.submit(os.rename, one / "file", two / "file")
        assert waits_in_copy_up(pid)
        assert not renaming.done()
        this.daemon.start()
        renaming.result()
    wait_for(lambda: "changed 0" in box.output().stdout, "the end of the change")
