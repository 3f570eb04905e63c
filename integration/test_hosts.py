"""Mirrors from hosts.toml, the same file for containerd and for our daemon, while the registry itself is gone."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import ALONE, StartNode
from integration.harness.cri import Container
from integration.harness.node import Node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import PROBE, content, expected
from snapshotter.registry.certs_d import CHECK_EVERY_S
from tests.doubles.relay import Relay

GONE = "registry.test"
"""A registry whose name has no address."""

Configured = Callable[[], Node]


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """The directory that both daemons look for hosts.toml in."""
    return tmp_path / "certs.d"


@pytest.fixture
def configured(start_node: StartNode, certs: Path) -> Configured:
    """Starts a node whose containerd and whose snapshotter know `certs`."""

    def start() -> Node:
        registry = {"config_path": [str(certs)], "retries": 1, "connect_timeout_s": 5.0}
        node = start_node({**ALONE, "registry": registry})
        node.containerd.stop()
        with open(node.containerd.folder / "config.toml", "a") as config:
            config.write(f'[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "{certs}"\n')
        node.containerd.start()
        wait_for(node.cri.runtime_ready, "a ready runtime")
        return node

    return start


def mirrors(certs: Path, *servers: str) -> Path:
    """A hosts.toml that names these servers before the registry that is gone."""
    path = certs / GONE / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [f'[host."{server}"]\n  capabilities = ["pull", "resolve"]\n' for server in servers]
    path.write_text(f'server = "https://{GONE}"\n' + "".join(tables))
    return path


def read(box: Container, number: int) -> str:
    """What the probe says of a file that nobody has read before."""
    return box.exec([PROBE, "read", f"/outage/{number}"]).stdout


def test_image_of_a_registry_that_is_gone_is_lazy_through_its_mirror(
    configured: Configured, certs: Path, registry: Registry, trial_image: str
) -> None:
    node = configured()
    with Relay("127.0.0.1", registry.port) as other:
        with Relay("127.0.0.1", registry.port) as one:
            path = mirrors(certs, f"http://{one.address}")
            image = node.cri.pull(f"{GONE}/{trial_image}")
            assert set(node.layer_states(trial_image)) == {"lazy"}
            box = node.start(image, "/bin/busybox", "sleep", "1000")
            assert read(box, 0) == expected(content("outage", 0))
            assert one.down > 0
        # That mirror is gone as well. The container goes on through another, without a restart of anything.
        mirrors(certs, f"http://{other.address}")
        assert read(box, 1) == expected(content("outage", 1))
        assert other.down > 0
        # A slip of the pen while it runs: what was read before goes on, and the line is named.
        path.write_text(path.read_text() + "skip_verify = maybe\n")
        written = time.monotonic()
        wait_for(lambda: time.monotonic() > written + CHECK_EVERY_S, "the time for another look at the file")
        assert read(box, 2) == expected(content("outage", 2))
        assert f"{path}:4: not valid TOML" in node.daemon.log()


def test_pull_with_a_broken_file_names_it_and_goes_the_ordinary_way_of_containerd(
    configured: Configured, certs: Path, trial_image: str
) -> None:
    node = configured()
    path = certs / node.reference("").partition("/")[0] / "hosts.toml"
    path.parent.mkdir(parents=True)
    path.write_text('ca = "absent.crt"\n[host]\n"http://x" = 3\n')
    node.pull(trial_image)
    assert {row["reason"] for row in node.daemon.json("layers") if row["image"].endswith(trial_image)} == {
        "bad-hosts-toml"
    }
    assert f"{path}:3: must be a table" in node.daemon.log()
