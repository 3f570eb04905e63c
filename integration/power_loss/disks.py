"""Disks of tests: a file system with reflinks, on it a volatile disk with the file system under test, and its clones."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from integration.harness.containerd import CommandFailed, run
from integration.harness.leftovers import detach_mounts
from integration.harness.process import wait_for
from integration.power_loss.volatile_disk import NAME, SECTOR, Cut

HOST_BYTES = 16 << 30
DISK_BYTES = 1 << 30
"""Both sparse."""
# No discards: the volatile disk does not take them. No lazy work after the first mount: it would only be noise.
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-s", f"size={SECTOR}"),
    "btrfs": ("mkfs.btrfs", "-q", "-K"),
}
NEEDED = {"btrfs": "nodiscard", "xfs": "nouuid"}
"""A clone of a mounted XFS has its id."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A kind of file system and how it is mounted."""

    kind: str
    options: str = ""

    @property
    def mount_options(self) -> str:
        """For `mount -o`."""
        return ",".join(filter(None, ("noatime", NEEDED.get(self.kind), self.options)))

    def missing(self) -> str:
        """Why this machine cannot have it; empty if it can."""
        return _missing(self.kind, MAKE[self.kind][0])


@dataclass(frozen=True, slots=True)
class Disk:
    """A volatile disk: its file system is mounted at `root`."""

    root: Path
    system: FileSystem
    server: "subprocess.Popen[str]"

    def cut(self, cut: Cut) -> dict[str, int]:
        """Have the power go; returns what became of the writes that no flush had covered."""
        said: dict[str, int] = _ask(self.server, json.dumps(asdict(cut)))
        return said


def reflinks_missing() -> str:
    """Why this machine cannot clone files; empty if it can."""
    return _missing("xfs", "mkfs.xfs")


@contextmanager
def host(folder: Path) -> Iterator[Path]:
    """An XFS with reflinks in a file below `folder`; gone at the end with everything on it."""
    image, top = folder / "host.img", folder / "host"
    with open(image, "wb") as file:
        file.truncate(HOST_BYTES)
    run(["mkfs.xfs", "-q", "-s", f"size={SECTOR}", "-m", "reflink=1", str(image)])
    with mounted(image, top, ("-t", "xfs")):
        yield top
    image.unlink()


@contextmanager
def volatile_disk(host: Path, system: FileSystem) -> Iterator[Disk]:
    """A disk of its own on the host file system, with an empty file system mounted."""
    live, stable, mount, root = (host / name for name in ("live", "stable", "fuse", "root"))
    with open(live, "wb") as file:
        file.truncate(DISK_BYTES)
    run([*MAKE[system.kind], str(live)])
    run(["cp", "--reflink=always", str(live), str(stable)])
    mount.mkdir()
    argv = [sys.executable, "-m", "integration.power_loss.volatile_disk", str(mount), str(live), str(stable)]
    with ExitStack() as undo:
        server = undo.enter_context(
            subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
            )
        )
        undo.callback(_end, server, mount)
        _answer(server)
        undo.enter_context(mounted(mount / NAME.decode(), root, ("-t", system.kind, "-o", system.mount_options)))
        yield Disk(root, system, server)


@contextmanager
def mounted(image: Path, target: Path, options: Sequence[str]) -> Iterator[Path]:
    """A file's file system on a loop device that goes with the mount."""
    target.mkdir(exist_ok=True)
    # Direct: what the file system has not written is not in the file either.
    device = run(["losetup", "--find", "--show", "--direct-io=on", f"--sector-size={SECTOR}", str(image)]).strip()
    try:
        run(["mount", *options, device, str(target)])
    finally:
        # Used by the mount it only says: go when that is gone.
        run(["losetup", "--detach", device])
    try:
        yield target
    finally:
        _unmount(target)
        wait_for(lambda: not _backs(device, image), f"the end of {device}", 30)


def _unmount(target: Path) -> None:
    """A mount that was just detached may hold it for a moment; then it is detached as well."""

    def tried() -> bool:
        try:
            run(["umount", str(target)])
        except CommandFailed:
            return False
        return True

    try:
        wait_for(tried, f"the release of {target}", 10)
    except TimeoutError:
        detach_mounts(target)


def _backs(device: str, image: Path) -> bool:
    try:
        backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    except OSError:
        return False
    return backing == str(image)


def _missing(kind: str, program: str) -> str:
    try:
        run([program, "-V"])
    except (OSError, CommandFailed) as error:
        return f"no {program}: {error}"
    if kind not in Path("/proc/filesystems").read_text().split():
        try:
            run(["modprobe", kind])
        except (OSError, CommandFailed):
            return f"this kernel has no {kind}"
    return "" if Path("/dev/loop-control").exists() else "no loop devices"


def _ask(server: "subprocess.Popen[str]", line: str) -> Any:
    assert server.stdin is not None
    server.stdin.write(line + "\n")
    server.stdin.flush()
    return _answer(server)


def _answer(server: "subprocess.Popen[str]") -> Any:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        message = f"the volatile disk ended with {server.wait()}"
        raise RuntimeError(message)
    return json.loads(line)


def _end(server: "subprocess.Popen[str]", mount: Path) -> None:
    detach_mounts(mount)
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
    if os.path.ismount(mount):
        run(["umount", "--lazy", str(mount)])
