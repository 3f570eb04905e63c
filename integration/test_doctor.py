"""`snapshotter doctor` on a real node: nothing to mend on a healthy one, and each fault by its name."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.conftest import QUIET
from integration.harness.containerd import containerd_version
from integration.harness.daemon import SNAPSHOTTER
from integration.harness.node import Node, node
from integration.harness.process import Process, accepts, wait_for
from integration.harness.registry import Registry
from snapshotter.containerd.settings import TRANSFER_SINCE
from snapshotter.doctor.findings import MUST_BE_MENDED
from tests.doubles.layers import file, layer
from tests.doubles.registry import LoopbackRegistry

TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination said."""

    code: int
    rows: list[dict[str, str]]

    def of(self, status: str) -> set[str]:
        """`group/name` of everything with this status."""
        return {f"{row['group']}/{row['name']}" for row in self.rows if row["status"] == status}

    def row(self, name: str) -> dict[str, str]:
        """The one finding called `group/name`."""
        (found,) = (row for row in self.rows if f"{row['group']}/{row['name']}" == name)
        return found


@pytest.fixture(scope="module")
def healthy(registry: Registry, lazy_images: None) -> Iterator[Node]:
    """A node that each test breaks in one place and mends again."""
    with node(registry, settings=QUIET) as started:
        yield started


def doctor(node: Node, *args: str) -> Report:
    """Examine the node, as an admin of it would."""
    folder = node.daemon.folder
    argv = [*SNAPSHOTTER, "doctor", "--json", "--config", str(folder / "config.toml")]
    argv += ["--address", str(node.daemon.address), "--containerd", str(node.containerd.address), *args]
    env = {**os.environ, **_environ(folder)}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=TIMEOUT_S, check=False)
    assert done.stderr == ""
    return Report(done.returncode, json.loads(done.stdout)["findings"])


def _environ(folder: Path) -> dict[str, str]:
    return {"DOCKER_CONFIG": str(folder / "docker"), "HOME": str(folder)}


@contextmanager
def reconfigured(node: Node, old: str, new: str) -> Iterator[None]:
    """containerd runs with a changed configuration until the block ends."""
    path = node.containerd.folder / "config.toml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    _restart_containerd(node)
    try:
        yield
    finally:
        path.write_text(before)
        _restart_containerd(node)


def _restart_containerd(node: Node) -> None:
    node.containerd.stop()
    node.containerd.start()
    wait_for(node.cri.runtime_ready, "a ready runtime")


def test_a_healthy_node_has_nothing_to_mend(healthy: Node) -> None:
    image = healthy.reference("small:lazy")
    report = doctor(healthy, "--image", image)
    assert report.of("fault") == set()
    assert report.code == 0
    # A line that other work holds up is worth a note, and no more.
    fine = report.of("ok") | (report.of("note") & {"registry/ranges", "registry/speed"})
    assert {
        *("kernel/version", "kernel/plane", "kernel/mounts seen"),
        *("installation/root", "installation/run directory", "installation/socket", "installation/daemon"),
        *("containerd/containerd", "containerd/configuration", "containerd/plugin", "clock/clock"),
        *(
            "registry/host",
            "registry/credentials",
            "registry/manifest",
            "registry/lazy",
            "registry/ranges",
            "registry/speed",
        ),
    } <= fine
    assert "clock/skew" in report.of("ok")
    assert report.of("skipped") == {"installation/leftovers"}


def test_the_daemon_says_which_plane_runs_and_no_trial_disturbs_it(healthy: Node) -> None:
    mounts = {mount.path for mount in healthy.mounts()}
    report = doctor(healthy)
    assert report.row("kernel/plane")["found"].startswith("the daemon runs the ")
    assert {mount.path for mount in healthy.mounts()} == mounts


def test_without_an_image_those_of_the_daemon_are_looked_at(healthy: Node) -> None:
    image = healthy.pull("small:lazy")
    try:
        report = doctor(healthy)
        assert healthy.reference("small:lazy") in {row["about"] for row in report.rows}
        assert "registry/ranges" in report.of("ok") | report.of("note")
    finally:
        healthy.remove_image(image)
        healthy.wait_until_collected()


def test_annotations_switched_off_are_found(healthy: Node) -> None:
    with reconfigured(healthy, "disable_snapshot_annotations = false", "disable_snapshot_annotations = true"):
        report = doctor(healthy)
    # Without them newer ones pull through another service, which asks for no layer either.
    puller = "transfer service" if containerd_version() >= TRANSFER_SINCE else "annotations"
    assert report.of("fault") == {f"containerd/{puller}"}
    assert report.code == MUST_BE_MENDED


def test_a_plugin_with_another_address_is_found(healthy: Node) -> None:
    with reconfigured(healthy, str(healthy.daemon.address), str(healthy.place / "elsewhere.sock")):
        report = doctor(healthy)
    assert report.of("fault") == {"containerd/address"}
    assert report.code == MUST_BE_MENDED


def test_a_plugin_that_containerd_has_not_loaded_is_found(healthy: Node) -> None:
    path = healthy.containerd.folder / "config.toml"
    before = path.read_text()
    named = before.replace('snapshotter = "estargz"', 'snapshotter = "newer"')
    path.write_text(named.replace("[proxy_plugins.estargz]", "[proxy_plugins.newer]"))
    try:
        report = doctor(healthy)
    finally:
        path.write_text(before)
    assert report.of("fault") == {"containerd/plugin"}
    assert "restart" in report.row("containerd/plugin")["do"]


def test_a_stopped_daemon_and_its_mounts_are_found(healthy: Node) -> None:
    healthy.daemon.stop()
    try:
        report = doctor(healthy)
    finally:
        healthy.daemon.start()
        healthy.wait_until_served()
    assert report.of("fault") == {"installation/daemon"}
    assert "installation/leftovers" in report.of("warning")
    assert report.row("kernel/plane")["found"].startswith("tried: ")
    assert report.code == MUST_BE_MENDED


def test_a_daemon_whose_mounts_containerd_does_not_see_is_found(healthy: Node) -> None:
    folder = healthy.daemon.folder
    apart = ["unshare", "--mount", "--propagation", "private", *SNAPSHOTTER, "serve", "--config"]
    keeper = healthy.daemon.json("status")["keeper_pid"]
    healthy.daemon.stop()
    # Else it would take over a mount that is seen.
    os.kill(keeper, signal.SIGKILL)
    try:
        process = Process("a daemon apart", [*apart, str(folder / "config.toml")], folder / "log", _environ(folder))
        try:
            process.wait_until(lambda: accepts(str(healthy.daemon.address)))
            report = doctor(healthy)
        finally:
            process.stop()
    finally:
        healthy.daemon.start()
        healthy.wait_until_served()
    assert report.of("fault") == {"kernel/mounts seen"}
    assert report.code == MUST_BE_MENDED


def test_a_trial_leaves_nothing(healthy: Node) -> None:
    healthy.daemon.stop()
    try:
        before = {mount.path for mount in healthy.mounts()}, _names(healthy)
        doctor(healthy)
        assert ({mount.path for mount in healthy.mounts()}, _names(healthy)) == before
    finally:
        healthy.daemon.start()
        healthy.wait_until_served()


def test_a_daemon_that_is_stuck_is_found_and_holds_nobody_up(healthy: Node) -> None:
    os.kill(healthy.daemon.process.pid, signal.SIGSTOP)
    try:
        report = doctor(healthy, "--timeout", "3")
    finally:
        os.kill(healthy.daemon.process.pid, signal.SIGCONT)
        healthy.wait_until_served()
    assert "installation/daemon" in report.of("fault")
    assert "kernel/plane" in report.of("skipped")
    assert report.code == MUST_BE_MENDED


def test_a_socket_that_others_may_open_is_found(healthy: Node) -> None:
    healthy.daemon.address.chmod(0o666)
    try:
        report = doctor(healthy)
    finally:
        healthy.daemon.address.chmod(0o600)
    assert report.of("fault") == {"installation/socket"}
    assert report.code == MUST_BE_MENDED


def test_containerd_that_is_stopped_is_found(healthy: Node) -> None:
    healthy.containerd.stop()
    try:
        report = doctor(healthy)
    finally:
        healthy.containerd.start()
        wait_for(healthy.cri.runtime_ready, "a ready runtime")
        healthy.wait_until_served()
    assert report.of("fault") == {"containerd/containerd"}
    assert report.code == MUST_BE_MENDED


def test_a_registry_that_is_down_is_found(healthy: Node) -> None:
    with healthy.outage():
        report = doctor(healthy, "--image", healthy.reference("small:lazy"))
    assert report.of("fault") == {"registry/host"}
    assert report.code == MUST_BE_MENDED


def test_a_registry_that_hangs_holds_nobody_up(healthy: Node) -> None:
    with healthy.hanging():
        report = doctor(healthy, "--image", healthy.reference("small:lazy"))
    assert report.of("fault") == {"registry/host"}
    assert report.code == MUST_BE_MENDED


def test_an_image_with_an_ordinary_layer_is_a_warning_that_the_strict_count(healthy: Node, mixed_image: str) -> None:
    image = healthy.reference(mixed_image)
    report = doctor(healthy, "--image", image)
    assert "registry/lazy" in report.of("warning")
    assert report.row("registry/lazy")["found"].startswith("1 of 3 layers")
    assert report.code == 0
    assert doctor(healthy, "--strict", "--image", image).code == MUST_BE_MENDED


def test_a_registry_without_ranges_is_found(healthy: Node) -> None:
    built = layer(file("a", os.urandom(100_000)))
    with LoopbackRegistry() as without:
        digest, config = without.add_blob(built.blob), without.add_blob(b"{}")
        entry = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": built.size}
        entry["annotations"] = dict(built.annotations)
        settings = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2}
        without.add_manifest({"schemaVersion": 2, "config": settings, "layers": [entry]})
        without.script(digest, "200-to-range*")
        report = doctor(healthy, "--image", without.reference())
    assert report.of("fault") == {"registry/ranges"}
    assert "HTTP ranges" in report.row("registry/ranges")["do"]
    assert report.code == MUST_BE_MENDED


def _names(node: Node) -> set[Path]:
    """Everything in the daemon's two directories, looked for without entering a mount."""
    found: set[Path] = set()
    for top in (node.daemon.root, node.daemon.run_dir):
        found |= {Path(entry.path) for entry in os.scandir(top)}
    return found
