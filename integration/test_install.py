"""The installed release under a real containerd: what is shipped pulls lazily and runs containers, on both planes."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

import integration.harness.daemon
from dev.distribution.build import TOP, build_release
from integration.conftest import StartNode
from integration.harness.containerd import CommandFailed
from integration.harness.leftovers import arguments_of
from integration.images.sample import WORKLOAD

UNIT = TOP / "deploy" / "systemd" / "estargz-snapshotter.service"


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a release that is installed below a folder of its own."""
    python = os.environ.get("DIST_PYTHON") or "/usr/bin/python3"
    folder = tmp_path_factory.mktemp("installed")
    release = build_release(python, TOP / "build" / "dist", folder / "release")
    env = {"PATH": os.environ["PATH"], "DESTDIR": str(folder / "node")}
    subprocess.run(["/bin/sh", release.folder / "install.sh"], env=env, check=True, capture_output=True)
    return folder / "node/usr/local/bin/snapshotter"


def bounded() -> list[str]:
    """Starts a program with the capabilities that the unit gives, as systemd does, by util-linux's setpriv."""
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    words = [f"+{word.removeprefix('CAP_').lower()}" for word in line.partition("=")[2].split()]
    return ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{','.join(words)}"]


def capabilities(pid: int) -> int:
    """How many a process has. Source: proc(5), CapEff."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("CapEff:"))
    return int(line.split()[1], 16).bit_count()


def test_what_is_installed_pulls_lazily_runs_and_comes_back(
    start_node: StartNode, lazy_images: None, plane: str, launcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration.harness.daemon, "SNAPSHOTTER", (*bounded(), str(launcher)))
    node = start_node(plane=plane)
    assert "/trees/" in arguments_of(node.daemon.process.pid)[0]
    assert capabilities(node.daemon.process.pid) == len(bounded()[-1].split(",")) - 1
    image = node.pull("sample:lazy")
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"
    node.restart_snapshotter(signal.SIGTERM)
    assert node.run(image, *WORKLOAD).stdout == "ready [1]\n"
    assert node.daemon.verify_cache()[0] == 0
    node.start(image, "sleep", "1000")
    with pytest.raises(CommandFailed, match="containers or mounts stand on the layers"):
        node.daemon.command("teardown")
    node.remove_sandbox()
    assert node.daemon.json("teardown")["done"]
