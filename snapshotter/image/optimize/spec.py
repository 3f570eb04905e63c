"""The OCI runtime specification of a sample container: what containerd's own tools give a container, no more rights. Pure.

Source: OCI Runtime Specification 1.0.2; containerd's oci.WithDefaultSpec and oci.WithDefaultUnixDevices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.image.optimize.users import User
from snapshotter.image.optimize.workload import Mount, Workload

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
_OPEN_FILES = 1024

_MOUNTS = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    Mount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    Mount("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Character devices by major and minor; None is every one. Source: Linux Documentation/admin-guide/devices.txt.
_DEVICES: tuple[tuple[int, int | None], ...] = (
    (1, 3),  # null
    (1, 8),  # random
    (1, 7),  # full
    (5, 0),  # tty
    (1, 5),  # zero
    (1, 9),  # urandom
    (5, 1),  # console
    (136, None),  # pseudo terminals
    (5, 2),  # ptmx
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container gets from the machine that it runs on.

    `network` is the path of a network namespace, "" for one of its own, None for the machine's. `console` is columns and
    rows of a terminal.
    """

    cgroup: str
    hostname: str
    network: str | None
    mounts: tuple[Mount, ...] = ()
    unified_cgroups: bool = False
    console: tuple[int, int] | None = None


def spec_of(workload: Workload, user: User, around: Surroundings) -> dict[str, Any]:
    """The specification as JSON has it."""
    process: dict[str, Any] = {
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(workload.args),
        "env": list(workload.env),
        "cwd": workload.cwd,
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": _OPEN_FILES, "soft": _OPEN_FILES}],
        "noNewPrivileges": True,
    }
    if workload.terminal:
        process["terminal"] = True
        if around.console is not None:
            columns, rows = around.console
            process["consoleSize"] = {"width": columns, "height": rows}
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs"},
        "hostname": around.hostname,
        "mounts": _mounts((*_MOUNTS, *around.mounts, *workload.mounts)),
        "linux": {
            "cgroupsPath": around.cgroup,
            "namespaces": _namespaces(around),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            "resources": {"devices": [{"allow": False, "access": "rwm"}, *map(_device, _DEVICES)]},
        },
    }


def _namespaces(around: Surroundings) -> list[dict[str, str]]:
    kinds = ["pid", "ipc", "uts", "mount", *(["cgroup"] if around.unified_cgroups else [])]
    found = [{"type": kind} for kind in kinds]
    if around.network is not None:
        found.append({"type": "network", **({"path": around.network} if around.network else {})})
    return found


def _mounts(mounts: Sequence[Mount]) -> list[dict[str, Any]]:
    """A later mount at the same place takes the place of an earlier one, as with ctr."""
    placed = {mount.destination: mount for mount in mounts}
    return [
        {"destination": one.destination, "type": one.kind, "source": one.source, "options": list(one.options)}
        for one in placed.values()
    ]


def _device(numbers: tuple[int, int | None]) -> dict[str, Any]:
    major, minor = numbers
    minors = {} if minor is None else {"minor": minor}
    return {"type": "c", "major": major, **minors, "access": "rwm", "allow": True}
