"""The daemon with what its unit leaves it, and what another user of the node can do with it: nothing."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.conftest import ALONE
from integration.harness.containerd import CommandFailed
from integration.harness.daemon import SNAPSHOTTER, Daemon
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.harness.roots import Roots
from integration.images.trial import PROBE, content, expected, large
from tests.deploy.test_unit import DAEMON, read_unit

NOBODY = 65534
BINARY = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
"""Bits of the capabilities that the unit may name. Source: linux/capability.h."""

AS_NOBODY = f"""
import json, os, socket, stat, sys
paths = json.load(sys.stdin)
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
def let_in(path):
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
    except OSError as error:
        return isinstance(error, PermissionError) is False
    return True
print(json.dumps([path for path in paths if let_in(path)]))
"""


def bounded(*capabilities: str) -> tuple[str, ...]:
    """A command line that starts a program with these capabilities at most, no new ones ever, and the worst of umasks."""
    names = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)
    words = ("setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{names}")
    return (*words, "sh", "-c", 'umask 000; exec "$@"', "sh")


@pytest.fixture(scope="module")
def unit_node(registry: Registry, trial_image: str, plane: str) -> Iterator[Node]:
    """A node whose daemon has what the unit says, in directories that stood open before; the image is pulled."""
    capabilities = read_unit(DAEMON)["Service"]["CapabilityBoundingSet"].split()

    def before(daemon: Daemon) -> Path:
        for place in (daemon.root, daemon.run_dir):
            place.mkdir()
            place.chmod(0o755)
        daemon.program = (*bounded(*capabilities), *SNAPSHOTTER)
        return daemon.address

    with node(registry, settings=ALONE, plane=plane, before=before) as this:
        this.pull(trial_image)
        yield this


def test_capabilities_of_the_unit_are_enough_to_pull_run_and_tear_down(unit_node: Node, plane: str) -> None:
    allowed = sum(1 << BINARY[name] for name in read_unit(DAEMON)["Service"]["CapabilityBoundingSet"].split())
    status = Path(f"/proc/{unit_node.daemon.process.pid}/status").read_text()
    assert {line.split()[1] for line in status.splitlines() if line.startswith(("CapEff", "CapPrm", "CapBnd"))} == {
        f"{allowed:016x}"
    }
    assert unit_node.daemon.json("status")["plane"] == plane
    assert unit_node.daemon.json("status")["problems"] == []
    box = unit_node.start(unit_node.reference("trial:lazy"), "/bin/busybox", "sleep", "1000")
    assert box.exec([PROBE, "read", "/restart/1"]).stdout == expected(content("restart", 1))
    assert box.exec([PROBE, "read", "/restart/large"]).stdout == expected(large("restart"))
    changed = "echo more >> /change/2; chown 5:6 /change/3; chmod 4755 /change/4; mknod /tmp/null c 1 3; cat /change/2"
    assert box.exec(["/bin/busybox", "sh", "-c", changed]).stdout.encode() == content("change", 2) + b"more\n"
    # Whose processes wait, and whose mounts are in the way, is read from /proc of processes that may more than the daemon.
    with ThreadPoolExecutor(1) as thread, unit_node.hanging():
        waiting = thread.submit(box.exec, [PROBE, "read", "/restart/3"])
        wait_for(lambda: box.id in json.dumps(unit_node.daemon.json("top", "--once")), "the wait of a container", 60)
    assert waiting.result().stdout == expected(content("restart", 3))
    with pytest.raises(CommandFailed, match="containers or mounts stand on the layers"):
        unit_node.daemon.command("teardown")
    box.remove()
    unit_node.restart_snapshotter()
    assert unit_node.run(unit_node.reference("trial:lazy"), PROBE, "read", "/restart/2").stdout == expected(
        content("restart", 2)
    )


def test_snapshots_belong_to_whom_their_parents_say_with_the_capabilities_of_the_unit(unit_node: Node) -> None:
    roots = Roots(unit_node)
    with roots.active("owned-key", roots.of_image("trial:lazy")) as tree:
        os.chown(tree, 70_000, 70_001)
    roots.commit("owned-key", "owned")
    with roots.active("owned-next", "owned") as tree:
        assert (tree.stat().st_uid, tree.stat().st_gid) == (70_000, 70_001)
    roots.remove("owned-next")


def test_nobody_else_reaches_socket_state_or_content(unit_node: Node) -> None:
    root, run_dir = unit_node.daemon.root, unit_node.daemon.run_dir
    paths = [str(path) for top in (root, run_dir) for path in (top, *within(top))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, run_dir)} == {0o700}
    assert stat.S_IMODE(unit_node.daemon.address.stat().st_mode) == 0o600
    for name in ("state.db", "cache.db", "objects", "snapshots", "tocs", "manifests"):
        assert str(root / name) in paths
    assert str(unit_node.daemon.address) in paths
    assert as_nobody(paths) == []
    # The way there is not what keeps others out.
    assert as_nobody([str(root.parent), str(root.parent / "log")]) == [str(root.parent), str(root.parent / "log")]


def test_everything_is_torn_down_with_the_capabilities_of_the_unit(unit_node: Node) -> None:
    unit_node.remove_sandbox()
    assert unit_node.daemon.json("teardown")["done"]
    wait_for(lambda: not unit_node.daemon.process.running, "the end of the daemon", 30)
    kinds = {mount.kind for mount in unit_node.mounts() if mount.path.startswith(f"{unit_node.daemon.run_dir}/")}
    assert kinds == set()


def within(top: Path) -> Iterator[Path]:
    """Everything below a directory, mounts left out."""
    device = top.lstat().st_dev
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if device_of(Path(folder, name)) == device]
        yield from (Path(folder, name) for name in (*names, *files))


def device_of(path: Path) -> int:
    """What it lies on; 0 of one that is gone, such as the directory of a snapshot that containerd has just collected."""
    try:
        return path.lstat().st_dev
    except FileNotFoundError:
        return 0


def as_nobody(paths: list[str]) -> list[str]:
    """Those that a user without any rights can list, read or connect to, or that are not there."""
    command = [sys.executable, "-c", AS_NOBODY]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found
