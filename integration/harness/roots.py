"""Snapshots as containerd mounts them, without a container: made by ctr, mounted below the node's folder."""

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.harness.containerd import Ctr, run
from integration.harness.leftovers import detach_mounts
from integration.harness.node import CRI_NAMESPACE, Node, chain_id


class Roots:
    """Active snapshots of one node and one namespace of its containerd."""

    def __init__(self, node: Node, namespace: str = CRI_NAMESPACE) -> None:
        self._node = node
        self._ctr: Ctr = node.ctr(namespace)
        self._words = ("snapshots", "--snapshotter", node.snapshotter)

    def of_image(self, name: str, layers: int | None = None) -> str:
        """The committed snapshot of a pulled image, or of its lowest `layers` layers."""
        repository, _, tag = name.partition(":")
        with self._node.registry.client() as client:
            return chain_id(client.config(repository, tag)["rootfs"]["diff_ids"][:layers])

    def prepare(self, key: str, parent: str) -> None:
        """Make an active snapshot, which containerd keeps until it is removed."""
        self._ctr(*self._words, "prepare", key, parent)

    def commit(self, key: str, name: str) -> None:
        """Turn an active snapshot into a committed one."""
        self._ctr(*self._words, "commit", name, key)
        self._ctr(*self._words, "label", name, f"containerd.io/gc.root={name}")

    def remove(self, key: str) -> None:
        """Remove a snapshot."""
        self._ctr.remove_snapshot(self._node.snapshotter, key)

    def diff(self, key: str) -> bytes:
        """What differs between an active snapshot and its parent, as a tar, by containerd's own comparison."""
        return subprocess.run(
            [*self._ctr.prefix, *self._words, "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", key],
            capture_output=True,
            check=True,
        ).stdout

    def options(self, key: str) -> list[str]:
        """The mount options that the snapshotter answers, as they are."""
        words = shlex.split(self._ctr(*self._words, "mounts", "/target", key))
        return words[words.index("-o") + 1].split(",")

    @contextmanager
    def mounted(self, key: str) -> Iterator[Path]:
        """The tree of an active snapshot, mounted as containerd says."""
        target = self._node.place / f"root-{key}"
        target.mkdir(exist_ok=True)
        for command in filter(None, self._ctr(*self._words, "mounts", str(target), key).splitlines()):
            run(shlex.split(command))
        try:
            yield target
        finally:
            detach_mounts(target)

    @contextmanager
    def active(self, key: str, parent: str) -> Iterator[Path]:
        """A new active snapshot, mounted; it is left when the block ends."""
        self.prepare(key, parent)
        with self.mounted(key) as tree:
            yield tree


def chrooted(tree: Path, *command: str) -> str:
    """Run a program in a tree and return what it printed; CommandFailed if it failed."""
    return run(["chroot", str(tree), *command])
