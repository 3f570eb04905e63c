"""What is done on a node with an installed release, from the first installation to the removal."""

import io
import json
import tarfile
from pathlib import Path

from integration.harness.leftovers import arguments_of, descendants
from integration.harness.process import Process, wait_for
from snapshotter.layer.toc_pool import WORKERS
from tests.deploy.jail import Jail
from tests.image.images import Image

UNINSTALL = "/usr/local/lib/estargz-snapshotter/uninstall.sh"
_PAYLOAD = bytes(range(256)) * 4096


def use(node: Jail, log: Path) -> None:
    """Every command an admin begins with, a conversion, and the daemon with a real mount, in a system without Python."""
    for interpreter in ("python3", "python"):
        assert node.run("sh", "-c", f"command -v {interpreter}").returncode != 0
    assert node.output("snapshotter", "version").startswith("snapshotter ")
    assert "[fetch]" in node.output("snapshotter", "config", "default")
    node.output("snapshotter", "config", "check")
    _convert(node)
    with node.daemon(log, "snapshotter", "serve") as daemon:
        status = json.loads(node.output("snapshotter", "status", "--json"))
        assert status["pid"] == daemon.pid
        assert status["mountpoint"] == "/run/estargz/fuse"
        assert all(one.startswith("/usr/local/lib/estargz-snapshotter/trees/") for one in workers_of(daemon))
        assert daemon.stop(timeout_s=60) == 0
    assert "unmounted /run/estargz/fuse" in node.output("snapshotter", "teardown")


def _convert(node: Jail) -> None:
    """Unpack, compress and hash with everything that is compiled."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("payload")
        entry.size = len(_PAYLOAD)
        tar.addfile(entry, io.BytesIO(_PAYLOAD))
    Image(packed.getvalue()).lay_out(node.root / "tmp" / "plain")
    node.output("snapshotter", "image", "convert", "oci:/tmp/plain:v1", "oci:/tmp/lazy:v1", "--scratch", "/tmp")
    manifest = json.loads((node.root / "tmp/lazy/index.json").read_text())["manifests"][0]
    text = (node.root / "tmp/lazy/blobs/sha256" / manifest["digest"].removeprefix("sha256:")).read_text()
    assert "containerd.io/snapshot/stargz/toc.digest" in text


def workers_of(daemon: Process) -> list[str]:
    """The programs of the processes that the daemon keeps ready for tables of contents, once they are there."""

    def programs() -> list[str]:
        found = (arguments_of(pid) for pid in descendants({daemon.pid}) - {daemon.pid})
        return [words[0] for words in found if "snapshotter.layer.toc_worker" in words]

    wait_for(lambda: len(programs()) == WORKERS, "workers for tables of contents", 60)
    return programs()
