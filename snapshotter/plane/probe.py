"""Which plane runs on this machine, and why; said in the log and by `snapshotter status`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import PlaneError

_TIMEOUTS: Final = ("default_request_timeout", "max_request_timeout")


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What the choice rests on. `request_timeouts_s`: sysctls that are set, by name, in seconds."""

    release: str
    has_fuse: bool
    request_timeouts_s: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PlaneChoice:
    """The plane that runs. `warnings` are whole sentences for the admin."""

    plane: str
    reason: str
    warnings: tuple[str, ...]


def read_facts(proc: Path = Path("/proc"), device: Path = Path("/dev/fuse")) -> KernelFacts:
    """Look at this machine; nothing is mounted and nothing changed."""
    timeouts = []
    for name in _TIMEOUTS:
        try:
            seconds = int((proc / "sys/fs/fuse" / name).read_text())
        except (OSError, ValueError):
            continue  # kernels before 6.15 have no such sysctl
        if seconds > 0:
            timeouts.append((name, seconds))
    return KernelFacts(os.uname().release, device.is_char_device(), tuple(timeouts))


def choose_plane(wanted: str, facts: KernelFacts) -> PlaneChoice:
    """Decide between the planes; `wanted` is the configuration's `auto`, `fuse` or `erofs`.

    Raises:
        PlaneError: the wanted plane cannot run here.
    """
    if wanted == "erofs":
        raise PlaneError('the erofs plane does not exist in this version: set plane to "auto" or "fuse"')
    if not facts.has_fuse:
        raise PlaneError(
            "there is no /dev/fuse, which the fuse plane needs: load the kernel module (modprobe fuse); in a "
            "container, pass the device in"
        )
    warnings = tuple(
        f"sysctl fs.fuse.{name} is {seconds} s: a read that waits longer for a registry ends the FUSE connection, and "
        "with it every lazy container of this node; set it to 0"
        for name, seconds in facts.request_timeouts_s
    )
    if wanted == "fuse":
        return PlaneChoice("fuse", f"configured; kernel {facts.release}", warnings)
    return PlaneChoice("fuse", f"the only plane of this version; kernel {facts.release}", warnings)
