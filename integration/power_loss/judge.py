"""Judges what a power loss has left: a process in namespaces of its own, where a later boot seems to run.

    unshare --mount --pid --fork --kill-child --mount-proc python -m integration.power_loss.judge SPEC

The clone is mounted, a daemon started with it as its root, and everything compared with the truth; first without a
registry, then, after a line on standard input, with it. What it started and mounted ends with its namespaces.
"""

import errno
import hashlib
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from integration.harness.containerd import run
from integration.harness.daemon import Daemon, Table
from integration.harness.leftovers import detach_mounts
from integration.harness.process import wait_for
from integration.power_loss.disks import FileSystem, mounted
from integration.power_loss.images import contents
from integration.power_loss.ledger import NAMESPACE, TARGET, Told
from integration.power_loss.tearing import maps, tear
from snapshotter.api import snapshots_pb2 as api
from snapshotter.api import snapshots_pb2_grpc
from snapshotter.store.partial_map import boot_tag

AWAY = "away"
COMPLAINTS = ("the file system lost it", "cannot be brought back", "Traceback")
RETURN_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What is judged, and the truth."""

    clone: str
    kind: str
    options: str
    plane: str
    certs: str
    told: list[tuple[str, int, str]]
    images: dict[str, int]  # name of the top snapshot → which image
    metadata: dict[str, str]  # path below the root → sha256 of what belongs there
    tear: int | None  # a seed


@dataclass(slots=True)
class Verdict:
    """What was found."""

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    log: str = ""
    """What the daemon said, if there is a fault."""


class Judge:
    """One clone, with a daemon running on it."""

    def __init__(self, spec: Spec, daemon: Daemon, channel: grpc.Channel, boot: int) -> None:
        self._spec = spec
        self._daemon = daemon
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)  # type: ignore[no-untyped-call]
        self._boot = boot
        self._truth = {
            hashlib.sha256(data).digest(): data for number in spec.images.values() for data in contents(number).values()
        }
        self._found: dict[str, Any] = {}
        self.verdict = Verdict()

    def check_snapshots(self) -> None:
        """Everything that containerd was told of is there, and can be mounted."""
        answers = self._call("List", api.ListSnapshotsRequest())
        self._found = found = {name: info for answer in answers for info in answer.info for name in _names(info)}
        for told in (Told(*row) for row in self._spec.told):
            info = found.get(told.key)
            if info is None or (info.kind, info.parent) != (told.kind, told.parent):
                self._fault(f"{told} is {info}")
            elif told.kind != api.COMMITTED:
                self._try("Mounts", api.MountsRequest(key=told.key))
            self.verdict.counts["snapshots"] += 1

    def check_names(self) -> None:
        """What the kernel reads without asking is right, and so is every chunk that a map calls present."""
        for path in self._daemon.root.glob("objects/_*/*/*/*"):
            try:
                found = _sha256(path)
            except FileNotFoundError:  # it left the cache
                continue
            if found != path.name[:64]:
                self._fault(f"{path.name} has other bytes")
            self.verdict.counts["objects"] += 1
        for path, state in maps(self._daemon.root, self._boot):
            try:
                data = path.with_suffix(".data").read_bytes()
            except FileNotFoundError:  # it became an object
                continue
            whole = self._truth.get(state.identity.digest)
            for ordinal, (offset, size, _) in enumerate(state.identity.chunks):
                if not state.present[ordinal] or ordinal in state.doubtful:
                    continue
                if whole is not None and data[offset : offset + size] != whole[offset : offset + size]:
                    self._fault(f"chunk {ordinal} of {path.name} has other bytes")
                self.verdict.counts["chunks"] += 1

    def read_all(self, *, back: bool) -> None:
        """Every file of every image through a mount: right, or EIO while there is no registry."""
        for number, (name, image) in enumerate(self._spec.images.items()):
            key = f"judge-{number}-{back}"
            parent = self._found[name].name if name in self._found else name
            answer = self._try("View", api.ViewSnapshotRequest(key=key, parent=parent))
            if answer is not None:
                with self._mounted(answer.mounts) as tree:
                    for path, data in contents(image).items():
                        self._read(tree / path, data, back=back)
                self._call("Remove", api.RemoveSnapshotRequest(key=key))

    def check_metadata(self) -> None:
        """What was torn is whole again, as far as a layer needs it."""

        def is_torn(path: str) -> bool:
            try:
                return _sha256(self._daemon.root / path) != self._spec.metadata[path]
            except FileNotFoundError:
                return False

        def wrong() -> list[str]:
            needed = list(self._spec.metadata)
            if self._spec.plane != "erofs":  # nobody needs these
                needed = [path for path in needed if not path.startswith("erofs/")]
            return [path for path in needed if is_torn(path)]

        try:
            wait_for(lambda: not wrong(), "the mending of metadata", RETURN_TIMEOUT_S)
        except TimeoutError:
            self.verdict.faults += [f"{path} stays torn" for path in wrong()]

    def check_log(self) -> None:
        """The daemon has nothing to complain of but what is lost and fetched again."""
        for line in self._daemon.log().splitlines():
            if any(word in line for word in COMPLAINTS):
                self._fault(line)

    def _read(self, path: Path, data: bytes, *, back: bool) -> None:
        deadline = time.monotonic() + RETURN_TIMEOUT_S
        while True:
            try:
                found = path.read_bytes()
            except OSError as error:
                if error.errno == errno.EIO and not back:
                    self.verdict.counts["unreadable while away"] += 1
                    return
                # The breaker asks once a second whether the registry is back.
                if error.errno == errno.EIO and time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                self._fault(f"{path}: {error}")
                return
            if found != data:
                self._fault(f"{path} has other bytes, {'back' if back else 'away'}")
            self.verdict.counts["read"] += 1
            return

    @contextmanager
    def _mounted(self, mounts: Any) -> Iterator[Path]:
        target = self._daemon.folder / "tree"
        target.mkdir(exist_ok=True)
        (mount,) = mounts
        run(["mount", "-t", mount.type, "-o", ",".join(mount.options), mount.source, str(target)])
        try:
            yield target
        finally:
            run(["umount", str(target)])

    def _call(self, method: str, request: Any) -> Any:
        answer = getattr(self._snapshots, method)(request, timeout=CALL_TIMEOUT_S, metadata=((NAMESPACE, "k8s.io"),))
        return list(answer) if method == "List" else answer

    def _try(self, method: str, request: Any) -> Any:
        """The answer; one that is a fault is None."""
        try:
            return self._call(method, request)
        except grpc.RpcError as error:
            self._fault(f"{method} {request}: {error}")
            return None

    def _fault(self, what: str) -> None:
        self.verdict.faults.append(what)


def judge(spec: Spec, folder: Path) -> Verdict:
    """Look at everything; `folder` is for the daemon and for what else is needed."""
    boot_id = str(uuid.uuid4())
    (folder / "boot_id").write_text(boot_id + "\n")
    run(["mount", "--bind", str(folder / "boot_id"), "/proc/sys/kernel/random/boot_id"])
    settings: Table = {
        "fetch": {"background": False, "on_outage": "error"},
        "cache": {"min_free": 0},
        "registry": {"config_path": [spec.certs], "retries": 1},
    }
    daemon = Daemon(folder / "s", settings, plane=spec.plane)
    system = FileSystem(spec.kind, spec.options)
    with mounted(Path(spec.clone), daemon.root, ("-t", spec.kind, "-o", system.mount_options)):
        torn = tear(daemon.root, random.Random(spec.tear), boot_tag(boot_id)) if spec.tear is not None else {}
        try:
            daemon.start()
            with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
                one = Judge(spec, daemon, channel, boot_tag(boot_id))
                one.verdict.counts.update({f"torn {what}": count for what, count in torn.items()})
                one.verdict.counts["unproven"] = len(list(daemon.root.glob("unproven/*/*/*")))
                one.check_names()
                one.check_snapshots()
                one.read_all(back=False)
                one.check_names()
                print(json.dumps(AWAY), flush=True)
                sys.stdin.readline()
                one.read_all(back=True)
                one.check_names()
                one.check_metadata()
                one.check_log()
        finally:
            daemon.stop()
            detach_mounts(daemon.run_dir)
    one.verdict.log = daemon.log() if one.verdict.faults else ""
    return one.verdict


def _names(info: Any) -> list[str]:
    """What containerd may call a snapshot: by its key, or by the layer for which it asked."""
    return [info.name, *([info.labels[TARGET]] if TARGET in info.labels else [])]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(path: str) -> None:
    """Judge what the file at `path` says, beside that file, and print the verdict as JSON."""
    verdict = judge(Spec(**json.loads(Path(path).read_text())), Path(path).parent)
    print(json.dumps({"faults": verdict.faults, "counts": verdict.counts, "log": verdict.log}), flush=True)


if __name__ == "__main__":
    os.umask(0o077)
    main(sys.argv[1])
