"""Containers that ctr starts, stops and starts again: a stopped one keeps its changes, which CRI does not offer."""

from integration.harness.node import CRI_NAMESPACE, Node


class Task:
    """One container of a pulled image that sleeps while it runs; its snapshot stays while it does not."""

    def __init__(self, node: Node, name: str, image: str) -> None:
        self._ctr = node.ctr(CRI_NAMESPACE)
        self._name = name
        self._executed = 0
        place = node.containerd.folder
        where = ("--runc-root", str(place / "runc"), "--cgroup", f"/{node.place.name}/{name}")
        command = ("/bin/busybox", "sleep", "1000")
        words = ("--detach", "--null-io", "--snapshotter", node.snapshotter, *where)
        self._ctr("run", *words, node.reference(image), name, *command)

    def exec(self, *command: str) -> str:
        """Run a program inside and return what it printed, on standard error too; CommandFailed if it failed."""
        self._executed += 1
        key = f"exec-{self._executed}"
        words = ("task", "exec", "--exec-id", key)
        return self._ctr.listening(f"{self._name}-{key}", words, self._name, *command)

    def stop(self) -> None:
        """End its processes."""
        self._ctr("task", "delete", "--force", self._name)

    def start(self) -> None:
        """Start it again, with what its snapshot holds."""
        self._ctr("task", "start", "--detach", "--null-io", self._name)

    def remove(self) -> None:
        """Stop and remove it with its snapshot."""
        self.stop()
        self._ctr("container", "delete", self._name)
