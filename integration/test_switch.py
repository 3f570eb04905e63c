"""The daemon comes back, with the same plane or the other: mounts are there, and what containers changed stays."""

import os
import signal
from collections import Counter
from pathlib import Path

from integration.conftest import ALONE, StartNode
from integration.harness.leftovers import loop_devices_of
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.tasks import Task
from integration.images.trial import CHANGES, PROBE, SHOW, content, expected, large

SLEEP = ("/bin/busybox", "sleep", "1000")
RENAMES = """
/bin/probe rename /tree /tmp/tree > /dev/null
chmod 600 /tmp/tree/4; mv /tmp/tree/5 /five; mv /tmp/tree/6 /tmp/tree/six; rm /tmp/tree/7; mkdir /tree; echo new > /tree/4
/bin/probe rename /tmp/tree /tmp/again > /dev/null
"""
MORE_CHANGES = """
chmod 600 /damage/1 /tmp/one; mv /damage/1 /damage/{0}; mv /damage/{0} /damage/1
/bin/probe rename /tmp/again /tmp/{0}; mv /tmp/{0} /tmp/again; echo {0} >> /change/larger
"""


def shown(task: Task) -> list[str]:
    """Everything that a container shows."""
    return sorted(task.exec("/bin/busybox", "sh", "-c", SHOW).splitlines())


def switch(this: Node, plane: str, number: int = signal.SIGTERM) -> None:
    """The daemon ends and comes back with another plane."""
    this.daemon.set_plane(plane)
    this.restart_snapshotter(number)
    assert this.daemon.json("status")["plane"] == plane


def layers(this: Node) -> Counter[str]:
    """How many EROFS mounts there are, by mount point."""
    return Counter(mount.path for mount in this.mounts() if mount.kind == "erofs")


def test_containers_keep_their_changes_when_the_plane_is_switched_and_back(
    start_node: StartNode, trial_image: str, erofs: str
) -> None:
    this = start_node(ALONE, plane=erofs)
    image = this.pull(trial_image)
    running = this.start(image, *SLEEP)
    assert running.exec(["/requests/program", "uid"]).stdout == "0 0\n"
    stopped = [Task(this, "made-on-erofs", trial_image)]
    stopped[0].exec("/bin/busybox", "sh", "-ec", CHANGES + RENAMES)
    for path, data in (("/tmp/again/six", content("tree", 6)), ("/change/larger", large("change"))):
        assert stopped[0].exec(PROBE, "read", path) == expected(data)
    for plane, number in (("fuse", signal.SIGTERM), (erofs, signal.SIGKILL)):
        before = [shown(task) for task in stopped]
        assert all(len(lines) > 600 for lines in before)
        for task in stopped:
            task.stop()
        switch(this, plane, number)
        for task in stopped:
            task.start()
        changed = [set(shown(task)) ^ set(lines) for task, lines in zip(stopped, before, strict=True)]
        assert changed == [set() for _ in stopped]
        assert len(layers(this)) == (3 if plane == erofs else 0)
        # One that ran all the while has what was fetched.
        assert running.exec(["/requests/program", "uid"]).stdout == "0 0\n"
        assert this.run(image, PROBE, "read", "/requests/1").stdout == expected(content("requests", 1))
        assert this.run(image, PROBE, "read", "/requests/large").stdout == expected(large("requests"))
        stopped[0].exec("/bin/busybox", "sh", "-ec", MORE_CHANGES.format(plane))
        if plane == "fuse":
            stopped.append(Task(this, "made-on-fuse", trial_image))
            stopped[1].exec("/bin/busybox", "sh", "-ec", CHANGES + RENAMES)


def test_every_layer_is_mounted_once_however_often_it_is_used_and_the_daemon_restarted(
    start_node: StartNode, trial_image: str, erofs: str
) -> None:
    this = start_node(ALONE, plane=erofs)
    image = this.pull(trial_image)
    assert this.run(image, PROBE, "read", "/change/1").stdout == expected(content("change", 1))
    old, *_ = [this.start(image, *SLEEP) for _ in range(3)]
    once = {str(this.daemon.run_dir / "e" / str(number)): 1 for number in (1, 2, 3)}
    assert layers(this) == once
    with this.outage():
        this.restart_snapshotter(signal.SIGKILL)
        assert layers(this) == once
        assert this.run(image, PROBE, "read", "/change/1").stdout == expected(content("change", 1))
    # A container that ran all the while reads through the daemon that is there now.
    assert old.exec([PROBE, "read", "/change/2"]).stdout == expected(content("change", 2))
    assert loop_devices_of(this.place.folder) == []
    this.remove_sandbox()
    for pulled in this.cri.images():
        this.remove_image(pulled)
    this.wait_until_collected()
    wait_for(lambda: not layers(this), "the end of the mounts")
    wait_for(lambda: not os.listdir(this.daemon.root / "erofs"), "the end of the images")
    wait_for(lambda: not files(this.daemon.run_dir / "e"), "the end of the mount points")


def files(folder: Path) -> list[str]:
    """What is in a directory that need not be there."""
    return os.listdir(folder) if folder.exists() else []
