"""`snapshotter config containerd` against a real containerd: written, restarted, used, reverted, restarted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.conftest import QUIET
from integration.harness.containerd import CommandFailed
from integration.harness.daemon import Daemon, snapshotter
from integration.harness.node import WHOLE, Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.sample import SMALL_OUTPUT, SMALL_WORKLOAD
from snapshotter.containerd.effective import effective
from snapshotter.containerd.finding import find
from snapshotter.containerd.settings import EXPORTS_ROOT_SINCE, image_file_system, read_settings


@contextmanager
def strangers(registry: Registry) -> Iterator[tuple[Node, Daemon]]:
    """A node whose containerd knows nothing of our daemon, which runs beside it."""
    with node(registry, snapshotter=WHOLE) as this:
        daemon = Daemon(this.place / "s", {"containerd": {"address": str(this.containerd.address)}, **QUIET})
        try:
            daemon.start()
            yield this, daemon
        finally:
            daemon.stop()


def configure(this: Node, daemon: Daemon, *arguments: str) -> str:
    """Run the command for this node's containerd and this daemon's configuration."""
    own = ["--containerd", str(this.containerd.address), "--config", str(daemon.folder / "config.toml")]
    return snapshotter(["config", "containerd", *own, *arguments])


def restart(this: Node) -> None:
    this.containerd.stop()
    this.containerd.start()
    wait_for(this.cri.runtime_ready, "a ready runtime")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of containerd's folder that are configuration."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log"}


def plugins(this: Node) -> str:
    return this.ctr()("plugins", "ls")


@pytest.mark.usefixtures("lazy_images")
def test_written_a_pull_is_lazy_and_reverted_all_is_as_it_was(registry: Registry) -> None:
    with strangers(registry) as (this, daemon):
        older = this.pull("small:plain")
        assert this.run(older, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
        this.remove_sandbox()
        before = contents(this.containerd.folder)
        said = configure(this, daemon, "--write")
        assert "containerd's own program has read the result" in said
        assert json.loads(configure(this, daemon, "--write", "--json"))["changed"] == []

        restart(this)
        assert " estargz " in plugins(this)
        # What was pulled before, the pause image among it, is unpacked once more from the node.
        assert this.run(older, *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
        assert this.run(this.pull("small:lazy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
        assert {row["state"] for row in daemon.json("layers") if row["image"].endswith("small:lazy")} <= {
            "lazy",
            "complete",
        }
        older_place = image_file_system(this.containerd.folder / "root", "estargz")
        knows_ours = find(this.containerd.address).version >= EXPORTS_ROOT_SINCE
        assert this.cri.image_usage().mountpoint == str(daemon.root if knows_ours else older_place)
        assert (f'root = "{older_place}"' in " ".join(said.split())) is not knows_ours

        this.remove_sandbox()
        for image in this.cri.images():
            this.remove_image(image)
        configure(this, daemon, "--revert")
        assert contents(this.containerd.folder) == before
        restart(this)
        assert " estargz " not in plugins(this)
        assert this.run(this.pull("small:lazy"), *SMALL_WORKLOAD).stdout == SMALL_OUTPUT
        assert any(row["image"].endswith("small:lazy") for row in daemon.json("layers")) is False


def test_the_containerd_that_runs_is_found_with_its_file_and_program(registry: Registry) -> None:
    with node(registry, snapshotter=WHOLE) as this:
        found = find(this.containerd.address)
        assert found.version[:2] >= (1, 6)
        assert found.pid is not None
        assert found.binary is not None
        assert found.binary.name == "containerd"
        assert found.config_path == this.containerd.folder / "config.toml"
        settings = read_settings(effective(found), found.version, this.place / "nobody.sock")
        assert (settings.snapshotter, settings.plugin_name) == ("overlayfs", "")
        assert settings.containerd_root == this.containerd.folder / "root"


def test_a_file_that_containerd_would_not_start_with_is_left_as_it_was(registry: Registry) -> None:
    with strangers(registry) as (this, daemon):
        main = this.containerd.folder / "config.toml"
        main.write_text(main.read_text() + "[cgroup]\n  path = 3\n")
        before = contents(this.containerd.folder)
        with pytest.raises(CommandFailed, match="containerd does not take it"):
            configure(this, daemon, "--write")
        assert contents(this.containerd.folder) == before
