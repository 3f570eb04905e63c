"""The end of a node's soak: everything is taken away as an admin would, and what is left then should not be there."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from integration.harness.containerd import CommandFailed
from integration.harness.leftovers import arguments_of, loop_devices_of, processes_marked, processes_rooted_in
from integration.harness.node import Node
from integration.harness.process import wait_for
from snapshotter.keeper.client import find

PATIENCE_S = 60.0
FOLDERS = ("snapshots", "tocs", "index", "erofs", "manifests", "objects", "late", "partial", "unproven")
"""Of root: what is named by no image has no file in any of them."""

FUSE = "fuse.estargz"
STAYS = frozenset({"lock", "keeper.lock", "keeper.log", "in-hand", "crash", "deaths", "stranded", "torn-down"})
"""What a daemon that was torn down leaves in its run directory besides empty directories: locks and notes of its life."""


def leftovers(node: Node, names: Sequence[str]) -> list[str]:
    """End the pod, remove the images, tear the daemon down; one line for each thing that outlives what it belonged to."""
    found = [*_without_images(node, names), *_torn_down(node)]
    return [f"after the end: {line}" for line in found]


def _without_images(node: Node, names: Sequence[str]) -> Iterator[str]:
    node.wait_until_served()
    # Layers of a pull that a kill ended are kept ten minutes for its repetition; what has a snapshot goes with that.
    for name in names:
        node.pull(name)
    node.remove_sandbox()
    for image in node.cri.images():
        node.remove_image(image)
    yield from _late("snapshots of containerd", node.snapshots)
    yield from _late("file in root", lambda: _files(node.daemon.root))
    yield from _late("layer", lambda: [f"{row['number']} of {row['image']}" for row in node.daemon.json("layers")])
    yield from _late("mount", lambda: [mount.path for mount in node.mounts() if mount.kind != FUSE])
    count = sum(mount.kind == FUSE for mount in node.mounts())
    if count != 1:
        yield f"{count} mounts of FUSE"
    yield from _late("process in a container", lambda: [str(pid) for pid in processes_rooted_in(node.place.folder)])


def _torn_down(node: Node) -> Iterator[str]:
    try:
        node.daemon.command("teardown")
    except CommandFailed as error:
        yield str(error)
        return
    yield from _late("process", lambda: _processes(node))
    yield from _late("mount", lambda: [mount.path for mount in node.mounts()])
    yield from _late("loop device", lambda: loop_devices_of(node.place.folder))
    if find(node.daemon.run_dir) is not None:
        yield "a keeper that keeps nothing"
    run_dir = node.daemon.run_dir
    yield from (f"{path.relative_to(run_dir)} in the run directory" for path in _unexpected(run_dir))


def _late(what: str, look: Callable[[], list[str]]) -> list[str]:
    """What is still there after a time in which it should have gone."""
    try:
        wait_for(lambda: not look(), what, PATIENCE_S)
    except TimeoutError:
        return [f"{what} {one}" for one in look()]
    return []


def _files(root: Path) -> list[str]:
    """Files below the folders of `root`; of snapshots also folders, which are what a snapshot is."""
    found = [f"snapshots/{name}" for name in os.listdir(root / "snapshots")]
    for name in FOLDERS[1:]:
        for folder, _, files in os.walk(root / name):
            found += [os.path.relpath(os.path.join(folder, file), root) for file in files]
    return found


def _processes(node: Node) -> list[str]:
    """Processes that name the node's folder. Another node's that began later carry the same mark, but not that name."""
    folder = f"{node.place.folder}/"
    commands = {pid: " ".join(arguments_of(pid)) for pid in processes_marked(node.place.name)}
    return [
        f"{pid}: {command}" for pid, command in commands.items() if folder in command and "containerd" not in command
    ]


def _unexpected(run_dir: Path) -> list[Path]:
    files = [path for path in run_dir.rglob("*") if path.is_symlink() or not path.is_dir()]
    return [path for path in files if str(path.relative_to(run_dir)) not in STAYS]
