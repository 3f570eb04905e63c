"""A node at work on a volatile disk, whose power goes again and again, and what the judge says of each time."""

import ctypes
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from integration.conftest import QUIET
from integration.harness.containerd import run
from integration.harness.cri import Container
from integration.harness.daemon import Daemon
from integration.harness.node import Node, chain_id, node
from integration.harness.registry import Registry
from integration.harness.scratch import scratch
from integration.power_loss.disks import Disk, FileSystem, host, volatile_disk
from integration.power_loss.images import LARGE_FILES, SMALL_FILES, name_of
from integration.power_loss.judge import AWAY, Spec
from integration.power_loss.ledger import Ledger, Told, recorded
from integration.power_loss.volatile_disk import Cut

# Slow enough that there are partial files at every moment.
AT_WORK = {**QUIET, "fetch": {"background": True, "background_delay_s": 0, "background_bandwidth": 1_500_000}}
KEEP = (0.5, None, 0.0, 0.9, None, 0.1)
"""What the power losses do to writes that no flush covered, in turn; see `Cut`. An odd one's clone is torn besides."""
KEPT = 3
"""So many images stay on the node; the oldest leaves for the next."""
AT_ONCE = 4
JUDGE = ("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc")
JUDGE_TIMEOUT_S = 300.0
METADATA = ("erofs/*.erofs", "index/*.idx", "tocs/*.zst")
_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Loss:
    """One moment without power: what the disk held, and what containerd had been told."""

    cut: Cut
    told: list[Told]
    writes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Result:
    """What the judge found in one clone."""

    loss: Loss
    faults: list[str]
    counts: Counter[str]
    log: str


def lose_power(
    registry: Registry, images: int, system: FileSystem, moments: int, *, seed: int, planes: Sequence[str]
) -> list[Result]:
    """Let a node work with `images` images on `system` and judge what `moments` power losses leave of its root."""
    dice = random.Random(seed)
    with ExitStack() as undo:
        place = undo.enter_context(scratch())
        top = undo.enter_context(host(place.folder))
        losses, tops, metadata, line = _at_work(registry, images, top, system, moments, dice)
        certs = _certs(place.folder / "certs", line, registry)
        results = []
        for number, loss in enumerate(losses):
            there = {told.key: image for told in loss.told for name, image in tops.items() if told.key.endswith(name)}
            spec = Spec(
                clone=loss.cut.path,
                kind=system.kind,
                options=system.options,
                plane=planes[number % len(planes)],
                certs=str(certs),
                told=[(told.key, told.kind, told.parent) for told in loss.told],
                images=there,
                metadata=metadata,
                tear=dice.getrandbits(32) if number % 2 else None,
            )
            with scratch() as own:
                results.append(_judged(spec, own.folder, registry, loss))
            Path(loss.cut.path).unlink()
        return results


def _at_work(
    registry: Registry, images: int, top: Path, system: FileSystem, moments: int, dice: random.Random
) -> tuple[list[Loss], dict[str, int], dict[str, str], str]:
    """The power losses; which image a top snapshot is of; hashes of metadata; and the registry's name on the node."""
    ledger, metadata = Ledger(), dict[str, str]()
    with ExitStack() as undo:
        disk = undo.enter_context(volatile_disk(top, system))

        def before(daemon: Daemon) -> Path:
            daemon.program = (sys.executable, "-m", "integration.power_loss.hurried")
            daemon.root.mkdir()
            run(["mount", "--bind", str(disk.root), str(daemon.root)])
            return undo.enter_context(recorded(ledger, daemon.address, daemon.folder / "ledger.sock"))

        this = undo.enter_context(node(registry, settings=AT_WORK, before=before))
        tops = {_top(this, number): number for number in range(images)}
        stop = threading.Event()
        with ThreadPoolExecutor(1) as thread:
            work = thread.submit(_work, this, images, stop, random.Random(dice.getrandbits(32)))
            try:
                losses = [
                    _loss(disk, ledger, _cut(top / f"clone-{n}", n, dice), metadata, work, dice) for n in range(moments)
                ]
            finally:
                stop.set()
            work.result()
        return losses, tops, metadata, this.relay.address


def _cut(clone: Path, number: int, dice: random.Random) -> Cut:
    keep = KEEP[number % len(KEEP)]
    return Cut(str(clone), keep, dice.getrandbits(32), before_flush=keep is not None and dice.random() < 0.7)


def _loss(
    disk: Disk, ledger: Ledger, cut: Cut, metadata: dict[str, str], work: "Future[None]", dice: random.Random
) -> Loss:
    time.sleep(dice.uniform(0.2, 1.6))
    if work.done():
        work.result()
    for pattern in METADATA:
        for path in disk.root.glob(pattern):
            # An image that leaves takes it along.
            with suppress(FileNotFoundError):
                if (name := str(path.relative_to(disk.root))) not in metadata:
                    metadata[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if dice.random() < 0.7:
        _write_back(disk.root, dice)
    writes: dict[str, int] = {}
    told = ledger.around(lambda: writes.update(disk.cut(cut)))
    return Loss(cut, told, writes)


def _write_back(root: Path, dice: random.Random) -> None:
    """Have the kernel write some files' pages now, as it does when memory is short: without a flush, in any order."""
    for path in [*root.glob("objects/*/*/*/*"), *root.glob("partial/*/*"), *root.glob("erofs/*")]:
        if dice.random() < 0.5:
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
            finally:
                os.close(fd)


def _work(this: Node, images: int, stop: threading.Event, dice: random.Random) -> None:
    """Images come, containers read a part of them, and both go again."""
    running: list[tuple[str, Container]] = []
    for turn in range(10_000):
        if stop.is_set():
            return
        image = this.pull(name_of(turn % images))
        box = this.start(image, "/bin/busybox", "sleep", "1000")
        running.append((image, box))
        paths = [f"/small/{n}" for n in range(SMALL_FILES)] + [f"/large/{n}" for n in range(LARGE_FILES)]
        chosen = dice.sample(paths, len(paths) // 2)
        for start in range(0, len(chosen), AT_ONCE):
            if stop.is_set():
                return
            script = "; ".join(_reading(path, dice) for path in chosen[start : start + AT_ONCE])
            box.exec(["/bin/busybox", "sh", "-c", script])
        if len(running) > KEPT:
            image, box = running.pop(0)
            box.remove()
            this.remove_image(image)


def _reading(path: str, dice: random.Random) -> str:
    """For a shell: read a small file, or a part of a large one."""
    if "large" in path:
        return f"dd if={path} bs=64k count=1 skip={dice.randrange(16)} of=/dev/null 2> /dev/null"
    return f"cat {path} > /dev/null"


def _top(this: Node, number: int) -> str:
    repository, _, tag = name_of(number).partition(":")
    with this.registry.client() as client:
        return chain_id(client.config(repository, tag)["rootfs"]["diff_ids"])


def _certs(folder: Path, line: str, registry: Registry) -> Path:
    """Where the judged daemons find the registry, since the node's line to it is gone."""
    (folder / line).mkdir(parents=True)
    (folder / line / "hosts.toml").write_text(f'server = "http://{registry.host}"\n')
    return folder


def _judged(spec: Spec, folder: Path, registry: Registry, loss: Loss) -> Result:
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    registry.stop()
    argv = [*JUDGE, sys.executable, "-m", "integration.power_loss.judge", str(folder / "spec.json")]
    with open(folder / "errors", "w+") as errors:
        judge = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        limit = threading.Timer(JUDGE_TIMEOUT_S, judge.kill)
        limit.start()
        try:
            assert judge.stdout is not None
            said = judge.stdout.readline()
            registry.start()
            out, _ = judge.communicate("\n")
        finally:
            limit.cancel()
            judge.kill()
            judge.wait()
        errors.seek(0)
        if said.strip() != json.dumps(AWAY) or judge.returncode:
            log = folder / "s" / "log"
            message = (
                f"the judge ended with {judge.returncode}:\n{errors.read()}\n{log.read_text() if log.exists() else ''}"
            )
            raise RuntimeError(message)
    verdict = json.loads(out)
    return Result(loss, verdict["faults"], Counter(verdict["counts"]), verdict["log"])
