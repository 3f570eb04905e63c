"""Which plane runs on this machine, and why; said in the log and by `snapshotter status`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapshotter.errors import PlaneError

if TYPE_CHECKING:
    from snapshotter.plane.erofs.backing import Backing
    from snapshotter.plane.erofs.probing import Probe

_TIMEOUTS: Final = ("default_request_timeout", "max_request_timeout")


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What the choice rests on. `request_timeouts_s`: sysctls that are set, by name, in seconds."""

    release: str
    has_fuse: bool
    request_timeouts_s: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PlaneChoice:
    """The plane that runs. `warnings` are whole sentences for the admin; `backing` belongs to the erofs plane alone."""

    plane: str
    reason: str
    warnings: tuple[str, ...]
    backing: "Backing | None" = None


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


def choose_plane(wanted: str, facts: KernelFacts, probe: "Callable[[], Probe]") -> PlaneChoice:
    """Decide between the planes; `wanted` is the configuration's `auto`, `fuse` or `erofs`.

    `probe` tries the erofs plane; it is not called where that is not asked for.

    Raises:
        PlaneError: the wanted plane cannot run here.
    """
    if not facts.has_fuse:
        raise PlaneError(
            "there is no /dev/fuse, which both planes need: load the kernel module (modprobe fuse); in a container, "
            "pass the device in"
        )
    warnings = tuple(
        f"sysctl fs.fuse.{name} is {seconds} s: a read that waits longer for a registry ends the FUSE connection, and "
        "with it every lazy container of this node; set it to 0"
        for name, seconds in facts.request_timeouts_s
    )
    kernel = f"kernel {facts.release}"
    if wanted == "fuse":
        return PlaneChoice("fuse", f"configured; {kernel}", warnings)
    found = probe()
    if found.works:
        configured = "configured; " if wanted == "erofs" else ""
        return PlaneChoice("erofs", f"{configured}{found.reason}; {kernel}", warnings, found.backing)
    if wanted == "erofs":
        raise PlaneError(
            f'the erofs plane cannot run here: {found.reason}; {kernel}. Or set plane to "auto": it takes the fuse plane '
            "where this one cannot run"
        )
    return PlaneChoice("fuse", f"the erofs plane cannot run here: {found.reason}; {kernel}", warnings)
