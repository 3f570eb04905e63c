"""A link planted under any name that a daemon uses: it starts or says why not, and nothing is done to what it leads to."""

import time
from pathlib import Path

import pytest

from integration.harness.daemon import Daemon
from integration.harness.process import accepts
from integration.harness.scratch import scratch
from tests.doubles.outside import Outside

PATIENCE_S = 60.0

DIRECTORIES = (
    *("root/objects", "root/late", "root/partial", "root/unproven", "root/snapshots", "root/tocs", "root/index", "root/manifests"),
    *("root/erofs", "r/fuse", "r/e", "r/l", "r/p", "root/probe", "root/snapshots/1", "root/objects/node", "root/partial/node", "r/l/1", "r/e/1"),
)  # fmt: skip
FILES = (
    *("root/lock", "root/state.db", "root/state.db-wal", "root/state.db-shm", "root/cache.db", "root/cache.db-wal", "root/made-room"),
    *("r/lock", "r/snapshotter.sock", "r/keeper.sock", "r/keeper.log", "root/erofs/.probe.erofs", "root/tocs/section-x", "root/manifests/x.json"),
)  # fmt: skip


def starts_or_says_why(daemon: Daemon) -> None:
    """It serves, or has ended with a sentence and without a traceback."""
    daemon.begin()
    deadline = time.monotonic() + PATIENCE_S
    while daemon.process.running and not accepts(str(daemon.address)):
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.02)
    daemon.stop()
    assert "Traceback" not in daemon.log()


@pytest.mark.long
@pytest.mark.parametrize("name", [*DIRECTORIES, *FILES])
def test_daemon_does_nothing_to_what_a_planted_link_leads_to(name: str, tmp_path: Path) -> None:
    outside = Outside(tmp_path)
    with scratch() as place:
        daemon = Daemon(place / "s", {})
        planted = (daemon.root if name.startswith("root/") else daemon.run_dir) / name.partition("/")[2]
        for folder in (daemon.root, daemon.run_dir, planted.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        planted.symlink_to(outside.directory if name in DIRECTORIES else outside.file)
        starts_or_says_why(daemon)
        outside.check()
        if name in FILES:
            planted.unlink(missing_ok=True)
            planted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            planted.symlink_to(outside.missing)
            starts_or_says_why(daemon)
            outside.check()
