"""What a run leaves whose command was killed: who finds it takes it away.

Container and lease carry a mark of the process that answers for them, so that nobody takes away what is in use. (Its scratch
directory is locked: `scratch.py`.)
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

import trio

from snapshotter.containerd import containers, leases
from snapshotter.containerd.client import Client
from snapshotter.containerd.containers import Recorded
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.containerd.tasks import Task
from snapshotter.errors import SnapshotterError
from snapshotter.image.optimize.remnants import clear_remnants

OWNER = "estargz-snapshotter/sample-owner"

_PROC = Path("/proc")
_BOOT = _PROC / "sys" / "kernel" / "random" / "boot_id"


def marked() -> dict[str, str]:
    """The labels of what this process answers for."""
    return {OWNER: own_mark()}


def own_mark() -> str:
    """This process: the boot, its namespace of process ids, its id and when it began."""
    return f"{_BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')} {os.getpid()} {_began(os.getpid())}"


def is_gone(mark: str) -> bool:
    """Whether the process that made a mark is gone for certain; one that cannot be seen from here is not."""
    words = mark.split(" ")
    if len(words) != 4 or not words[2].isdigit():
        return False
    if words[0] != _BOOT.read_text().strip():
        return True
    if words[1] != os.readlink("/proc/self/ns/pid"):
        return False
    return _began(int(words[2])) != words[3]


async def end_abandoned(client: Client) -> list[str]:
    """End every sample container and every lease of the namespace whose process is gone; the containers' names.

    Raises:
        ContainerdError: containerd does not say which there are. What cannot be ended is left for the next time.
    """
    ended = []
    for container in await containers.labelled(client, OWNER):
        if is_gone(container.labels[OWNER]):
            with suppress(SnapshotterError):
                await _end(client, container)
                ended.append(container.id)
    for lease, labels in (await leases.labelled(client, OWNER)).items():
        if is_gone(labels[OWNER]):
            with suppress(SnapshotterError):
                await leases.delete(Client(client.channel, client.address, client.namespace, lease), sync=True)
    return ended


async def _end(client: Client, container: Recorded) -> None:
    task = Task(client, container.id)
    await task.kill(signal.SIGKILL, everyone=True)
    await task.delete()
    await trio.to_thread.run_sync(clear_remnants, client.namespace, container.id)
    await containers.delete(client, container.id)
    await Snapshots(client, container.snapshotter).remove(container.snapshot_key)


def _began(pid: int) -> str:
    """When a process began, in ticks since the boot; "" if there is none. Source: proc_pid_stat(5), field 22."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
