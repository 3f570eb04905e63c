"""What is said of containerd, from what it is found to be; a real one is in `integration/test_doctor.py`."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapshotter.containerd.finding import Found
from snapshotter.containerd.introspection import Plugin, Version
from snapshotter.doctor import containerd as room
from snapshotter.doctor.containerd import Containerd, process_start
from snapshotter.doctor.examination import examine
from snapshotter.doctor.findings import Finding, Verdict
from snapshotter.errors import ConfigError, ContainerdError, ContainerdUnfit, ContainerdUnreachable, SnapshotterError
from tests.doctor.world import World

V1, V2 = Version(1, 7, 28), Version(2, 1, 5)
CRI = "io.containerd.grpc.v1.cri"


class Node:
    """A containerd that is what a test says."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.version = V1
        self.flavour = "containerd"
        self.failure: SnapshotterError | None = None
        self.unreadable: SnapshotterError | None = None
        self.config_path: Path | None = None
        self.pid: int | None = None
        self.loaded = [Plugin("io.containerd.snapshotter.v1", "estargz", {}, (), "")]
        exports = {"root": str(world.root)}
        self.tables: dict[str, Any] = {
            "proxy_plugins": {"estargz": {"type": "snapshot", "address": str(world.socket), "exports": exports}},
            "plugins": {CRI: {"containerd": {"snapshotter": "estargz", "disable_snapshot_annotations": False}}},
        }
        monkeypatch.setattr(room, "find", self._find)
        monkeypatch.setattr(room, "effective", self._effective)
        monkeypatch.setattr(room, "connected", self._connected)
        monkeypatch.setattr(room, "plugins", lambda _channel, _kind: self.loaded)

    @property
    def images(self) -> dict[str, Any]:
        table: dict[str, Any] = self.tables["plugins"][CRI]["containerd"]
        return table

    @property
    def proxy(self) -> dict[str, Any]:
        table: dict[str, Any] = self.tables["proxy_plugins"]["estargz"]
        return table

    def runs(self, config_path: Path) -> float:
        """Let it run with this file; return since when."""
        self.pid, self.config_path = 200, config_path
        fields = ["S", *("0" for _ in range(18)), str(5 * os.sysconf("SC_CLK_TCK")), "0"]
        self.world.write("proc/200/stat", f"200 (a (b) c) {' '.join(fields)}\n")
        self.world.write("proc/stat", "cpu  1 2\nbtime 1700000000\n")
        return 1_700_000_005.0

    def _find(self, address: Path | None) -> Found:
        if self.failure is not None:
            raise self.failure
        named = address or self.world.config.containerd.address
        return Found(named, self.version, self.pid, Path("/usr/bin/containerd"), self.config_path, self.flavour)

    def _effective(self, _found: Found) -> Mapping[str, Any]:
        if self.unreadable is not None:
            raise self.unreadable
        return self.tables

    @contextmanager
    def _connected(self, _address: Path) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel("unix:/nowhere") as channel:
            yield channel

    def asked(self, **other: object) -> dict[str, Finding]:
        subject = self.world.subject(**other)
        return {one.name: one for one in examine(Containerd(subject).checks(), 30.0)}


@pytest.fixture
def node(world: World, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(world, monkeypatch)


def verdicts(found: dict[str, Finding]) -> dict[str, Verdict]:
    return {name: one.verdict for name, one in found.items()}


def test_a_containerd_that_is_configured_for_us_is_in_order(node: Node) -> None:
    assert set(verdicts(node.asked()).values()) == {Verdict.OK}


@pytest.mark.parametrize(
    ("error", "uid", "verdict"),
    [
        (ContainerdUnreachable("no containerd at x: there is no such socket; start it"), 0, Verdict.FAULT),
        (ContainerdUnfit("x does not know the call; take another"), 0, Verdict.FAULT),
        (ContainerdUnreachable("no permission to use x: run this command as root (sudo)"), 1000, Verdict.SKIPPED),
    ],
)
def test_without_containerd_the_rest_is_skipped(
    node: Node, error: SnapshotterError, uid: int, verdict: Verdict
) -> None:
    node.failure = error
    found = node.asked(uid=uid)
    assert verdicts(found) == {"containerd": verdict, "configuration": Verdict.SKIPPED, "plugin": Verdict.SKIPPED}
    assert found["containerd"].advice


def test_a_containerd_before_our_time_is_a_fault(node: Node) -> None:
    node.version = Version(1, 5, 9)
    assert node.asked()["containerd"].verdict is Verdict.FAULT


def test_another_containerd_than_the_daemon_asks_is_worth_knowing(node: Node) -> None:
    assert node.asked(containerd=Path("/run/k3s/containerd/containerd.sock"))["address"].verdict is Verdict.NOTE


def test_annotations_that_are_off_are_a_fault(node: Node) -> None:
    node.images["disable_snapshot_annotations"] = True
    found = node.asked()
    assert found["annotations"].verdict is Verdict.FAULT
    assert "configuration" not in found


def test_a_plugin_at_another_address_is_a_fault(node: Node) -> None:
    node.proxy["address"] = "/run/other.sock"
    found = node.asked()
    assert found["address"].verdict is Verdict.FAULT
    assert found["plugin"].verdict is Verdict.SKIPPED


def test_pods_that_use_another_snapshotter_are_a_fault(node: Node) -> None:
    node.images["snapshotter"] = "overlayfs"
    assert node.asked()["pods"].verdict is Verdict.FAULT


@pytest.mark.parametrize("capability", ["rebase", "remap-ids"])
def test_a_capability_that_must_not_be_claimed_is_a_fault(node: Node, capability: str) -> None:
    node.proxy["capabilities"] = [capability]
    assert node.asked()["capability"].verdict is Verdict.FAULT


def test_pulls_by_the_transfer_service_that_names_no_layers_are_a_fault(node: Node) -> None:
    node.version = V2
    del node.images["disable_snapshot_annotations"]
    assert node.asked()["transfer service"].verdict is Verdict.FAULT


def test_discarded_layers_are_worth_knowing(node: Node) -> None:
    node.images["discard_unpacked_layers"] = True
    assert node.asked()["discarded layers"].verdict is Verdict.NOTE


def test_an_image_file_system_that_kubelet_does_not_see_is_a_warning(node: Node) -> None:
    node.proxy["exports"] = {}
    assert node.asked()["image file system"].verdict is Verdict.WARNING
    node.version = Version(1, 6, 20)
    assert node.asked()["image file system"].verdict is Verdict.WARNING


@pytest.mark.parametrize("flavour", ["containerd", "docker"])
def test_a_containerd_without_cri_is_complained_of_but_dockers_own(node: Node, flavour: str) -> None:
    node.tables["disabled_plugins"] = ["cri"]
    node.flavour = flavour
    assert (node.asked()["CRI"].verdict is Verdict.NOTE) == (flavour == "docker")


def test_a_runtime_with_another_snapshotter_is_worth_knowing(node: Node) -> None:
    node.images["runtimes"] = {"kata": {"snapshotter": "devmapper"}}
    assert node.asked()["runtime"].verdict is Verdict.NOTE


def test_a_plugin_that_is_not_loaded_or_failed_is_a_fault(node: Node) -> None:
    node.loaded = []
    assert "restart" in node.asked()["plugin"].advice
    node.loaded = [Plugin("io.containerd.snapshotter.v1", "estargz", {}, (), "no such socket")]
    found = node.asked()["plugin"]
    assert found.verdict is Verdict.FAULT
    assert "no such socket" in found.found


def test_a_configuration_that_cannot_be_read_is_told(node: Node) -> None:
    node.unreadable = ContainerdError("cannot run /usr/bin/containerd: x; run this command as root")
    assert node.asked()["configuration"].verdict is Verdict.WARNING
    node.unreadable = ConfigError("/etc/containerd/config.toml: containerd does not take it: x")
    assert node.asked()["configuration"].verdict is Verdict.FAULT


@pytest.mark.parametrize("which", ["containerd.toml", "conf.d/ours.toml"])
def test_a_configuration_younger_than_containerd_is_told(node: Node, world: World, which: str) -> None:
    files = {name: world.write(name, "") for name in ("containerd.toml", "conf.d/ours.toml")}
    node.tables["imports"] = ["conf.d/*.toml"]
    began = node.runs(files["containerd.toml"])
    for path in files.values():
        os.utime(path, (began - 60, began - 60))
    assert "restart" not in node.asked()
    os.utime(files[which], (began + 60, began + 60))
    found = node.asked()["restart"]
    assert found.verdict is Verdict.WARNING
    assert str(files[which]) in found.found


def test_the_start_of_this_process_is_found() -> None:
    began = process_start(Path("/proc"), os.getpid())
    assert time.time() - 86400 < began < time.time() + 2
