"""One node as tests see it: a container runtime with a snapshotter, a registry behind a counted line, and its end.

Tests speak to a node through this class only, so that the same bodies can run against a node of another kind.
"""

import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc

from integration.harness.containerd import CommandFailed, Containerd, Ctr
from integration.harness.cri import Container, Cri, Output, Sandbox
from integration.harness.daemon import Daemon, Table
from integration.harness.disk import mount_disk
from integration.harness.leftovers import MountPoint, arguments_of, detach_mounts, mounts_of, processes_rooted_in
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.harness.scratch import Scratch, scratch, undisturbed
from tests.doubles.relay import Relay

CRI_NAMESPACE = "k8s.io"
LAZY = "estargz"
# Another tool's command line pulls only through a plugin of this name; both names reach the same daemon.
LAZY_ALIAS = "stargz"
WHOLE = "overlayfs"
PAUSE = "pause:1"
HANGS_S = 3600.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that the node received from the registry and sent to it, and its connections there, so far."""

    received: int
    sent: int
    connections: int

    def since(self, earlier: "Traffic") -> "Traffic":
        """What came after `earlier`."""
        return Traffic(
            self.received - earlier.received, self.sent - earlier.sent, self.connections - earlier.connections
        )


class Node:
    """A node; made by `node()`, whose snapshotter for pods is `snapshotter`."""

    def __init__(self, place: Scratch, registry: Registry, relay: Relay, snapshotter: str) -> None:
        self.place = place
        self.registry = registry
        self.relay = relay
        self.snapshotter = snapshotter
        self._numbers = count(1)
        self._sandbox: Sandbox | None = None

    def attach(self, containerd: Containerd, cri: Cri, daemon: Daemon | None) -> None:
        """Called once while the node is put together."""
        self.containerd = containerd
        self.cri = cri
        self._daemon = daemon

    @property
    def daemon(self) -> Daemon:
        """Our daemon on this node."""
        if self._daemon is None:
            message = "this node runs without our snapshotter"
            raise RuntimeError(message)
        return self._daemon

    # Images

    def reference(self, name: str) -> str:
        """How this node names an image `repository:tag` of the registry: its traffic crosses the counted line."""
        return f"127.0.0.1:{self.relay.port}/{name}"

    def pull(self, name: str) -> str:
        """Pull as kubelet does; return the image's id."""
        return self.cri.pull(self.reference(name))

    def pull_whole(self, name: str, snapshotter: str = WHOLE) -> None:
        """Download and unpack every layer into `snapshotter`, beside the pods' images."""
        self.ctr().pull(self.reference(name), snapshotter)

    def remove_image(self, image: str) -> None:
        """Remove an image as kubelet does."""
        self.cri.remove_image(image)

    # Containers

    def sandbox(self) -> Sandbox:
        """The pod that containers of this node share; started at first use."""
        if self._sandbox is None:
            logs = self.place / "logs"
            logs.mkdir(exist_ok=True)
            self._sandbox = self.cri.run_sandbox(f"pod-{next(self._numbers)}", logs, self.place.name)
        return self._sandbox

    def start(self, image: str, *command: str) -> Container:
        """Start a container that goes on running."""
        return self.sandbox().start(f"container-{next(self._numbers)}", image, command)

    def run(self, image: str, *command: str) -> Output:
        """Run a container to its end and remove it."""
        container = self.start(image, *command)
        try:
            return container.wait()
        finally:
            container.remove()

    def remove_sandbox(self) -> None:
        """End the pod and its containers."""
        if self._sandbox is not None:
            sandbox, self._sandbox = self._sandbox, None
            sandbox.remove()

    # The network

    def traffic(self) -> Traffic:
        """What crossed the line between node and registry so far."""
        return Traffic(self.relay.down, self.relay.up, self.relay.connections)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The registry cannot be reached until the block ends, and open connections to it break."""
        self.registry.stop()
        self.relay.drop_all()
        try:
            yield
        finally:
            self.registry.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The registry takes requests and answers nothing until the block ends, when connections break."""
        delay_s, self.relay.delay_s = self.relay.delay_s, HANGS_S
        try:
            yield
        finally:
            self.relay.delay_s = delay_s
            self.relay.drop_all()

    # What lies on the node

    def ctr(self, namespace: str = "default", program: str = "ctr") -> Ctr:
        """The command line of containerd (or of another tool that speaks to it)."""
        return self.containerd.ctr(namespace, program)

    def content(self) -> set[str]:
        """Digests of all blobs in the runtime's content store that belong to pods' images."""
        return set(self.ctr(CRI_NAMESPACE).content())

    def snapshots(self, namespace: str = CRI_NAMESPACE) -> list[str]:
        """Keys of the snapshots in the pods' snapshotter."""
        return self.ctr(namespace).snapshots(self.snapshotter)

    def layer_states(self, name: str) -> list[str]:
        """State of each layer of a pulled image, as our daemon shows it."""
        return [row["state"] for row in self.daemon.json("layers") if row["image"].endswith(f"/{name}")]

    def fuse_requests(self) -> Counter[str]:
        """What the kernel has asked our daemon since its start, by kind of request."""
        return self.daemon.fuse_requests()

    def rootfs(self, container: Container) -> Path:
        """A running container's root as this machine sees it: the same mount."""
        runtime = self.containerd.folder / "state" / "io.containerd.runtime.v2.task"
        return runtime / CRI_NAMESPACE / container.id / "rootfs"

    def upper(self, container: Container) -> Path:
        """Where the changes of a running container lie."""
        (mount,) = (mount for mount in self.mounts() if mount.path == str(self.rootfs(container)))
        return Path(mount.options.partition("upperdir=")[2].partition(",")[0])

    def processes(self, word: str) -> set[int]:
        """Live processes in containers of this node that have `word` among their arguments."""
        return {pid for pid in processes_rooted_in(self.place.folder) if word in arguments_of(pid)}

    def wait_until_complete(self, name: str, timeout_s: float = 120.0) -> None:
        """Wait until background fill has brought everything of an image, and the kernel finds it without the daemon."""

        def done() -> bool:
            # The last chunk of a large file is there before the file is checked and has its name.
            partial = self.daemon.root / "partial"
            return set(self.layer_states(name)) == {"complete"} and not any(names for _, _, names in os.walk(partial))

        wait_for(done, f"the end of background fetching of {name}", timeout_s)

    def mounts(self) -> list[MountPoint]:
        """Every mount of this node."""
        return mounts_of(self.place.folder)

    @contextmanager
    def view(
        self, name: str, *, snapshotter: str | None = None, namespace: str = CRI_NAMESPACE, layers: int | None = None
    ) -> Iterator[Path]:
        """A read-only mount of a pulled image's tree, of its lowest `layers` layers or all of them."""
        snapshotter = snapshotter or self.snapshotter
        repository, _, tag = name.partition(":")
        with self.registry.client() as client:
            diff_ids = client.config(repository, tag)["rootfs"]["diff_ids"]
        number = next(self._numbers)
        target = self.place / f"view-{number}"
        target.mkdir()
        ctr = self.ctr(namespace)
        ctr.mounted_view(snapshotter, f"view-{number}", chain_id(diff_ids[:layers]), target)
        try:
            yield target
        finally:
            detach_mounts(target)
            ctr.remove_snapshot(snapshotter, f"view-{number}")

    def wait_until_collected(self) -> None:
        """Wait until containerd has removed every snapshot that nothing needs any more."""
        wait_for(lambda: not self.snapshots(), "the removal of all snapshots")

    # Faults

    def restart_snapshotter(self, number: int = signal.SIGTERM) -> float:
        """End the daemon with a signal and start it again; return how many seconds it was away.

        Returns when containerd talks to it again: its own back-off between attempts is up to 3 s.
        """
        began = time.monotonic()
        self.daemon.stop(number)
        self.daemon.start()
        away = time.monotonic() - began
        self.wait_until_served()
        return away

    def wait_until_served(self) -> None:
        """Wait until containerd has noticed that a daemon is there again."""
        wait_for(self._is_served, "containerd's next word with the snapshotter")

    def _is_served(self) -> bool:
        ctr = self.ctr(CRI_NAMESPACE)
        try:
            if not ctr.snapshots(self.snapshotter):
                # Of a list that it keeps itself and finds empty containerd asks nobody.
                key = f"asked-{next(self._numbers)}"
                ctr.prepare(self.snapshotter, key)
                with suppress(CommandFailed):  # collected already
                    ctr.remove_snapshot(self.snapshotter, key)
        except CommandFailed:
            return False
        return True


@contextmanager
def node(
    registry: Registry,
    *,
    snapshotter: str = LAZY,
    settings: Table | None = None,
    plane: str = "auto",
    round_trip_s: float = 0.0,
    environ: Mapping[str, str] | None = None,
    disk: int = 0,
    before: Callable[[Daemon], Path] | None = None,
) -> Iterator[Node]:
    """A running node; everything it started, mounted and wrote is gone at the end.

    Without `snapshotter="estargz"` only containerd runs. `settings` are tables for our daemon's configuration, `environ` is
    laid over its environment. Its root is a file system of `disk` bytes, if that is given. `before` is called with
    the daemon before its start, and gives the socket that containerd is told of.
    """
    with ExitStack() as undo:
        place = undo.enter_context(scratch())
        relay = undo.enter_context(Relay("127.0.0.1", registry.port, delay_s=round_trip_s / 2))
        daemon = None
        proxies: dict[str, Path] = {}
        if snapshotter == LAZY:
            own = {"containerd": {"address": str(place / "c" / "c.sock")}}
            daemon = Daemon(place / "s", {**own, **(settings or {})}, plane=plane, environ=environ)
            undo.callback(daemon.stop)
            if disk:
                mount_disk(place / "disk", daemon.root, disk)
            address = before(daemon) if before else daemon.address
            daemon.start()
            proxies = {LAZY: address, LAZY_ALIAS: address}
        this = Node(place, registry, relay, snapshotter)
        containerd = Containerd(place / "c", this.reference(PAUSE), snapshotter, proxies)
        undo.callback(containerd.stop)
        containerd.start()
        cri = Cri(containerd.address)
        undo.callback(cri.close)
        wait_for(cri.runtime_ready, "a ready runtime")
        this.attach(containerd, cri, daemon)
        undo.callback(_end_containers, cri)
        yield this


@contextmanager
def running_registry() -> Iterator[Registry]:
    """A running registry with an empty store in a folder of its own."""
    with scratch() as place:
        registry = Registry(place / "registry")
        try:
            registry.start()
            yield registry
        finally:
            registry.close()


def chain_id(diff_ids: Sequence[str]) -> str:
    """The name of the snapshot that holds these layers. Source: OCI Image Spec 1.1, config.md, layer ChainID."""
    name = diff_ids[0]
    for diff_id in diff_ids[1:]:
        name = "sha256:" + hashlib.sha256(f"{name} {diff_id}".encode()).hexdigest()
    return name


def _end_containers(cri: Cri) -> None:
    """Pods end the proper way; what that leaves, the scratch folder's removal kills."""
    with undisturbed():
        try:
            cri.remove_all_sandboxes()
        except grpc.RpcError as error:
            print(f"harness: pods did not end properly: {error.details()}")
