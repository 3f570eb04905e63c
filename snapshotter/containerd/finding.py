"""Which containerd runs on this node: its socket, its process, its program, its configuration file.

The process is who listens on the socket (SO_PEERCRED), its configuration file what its command line says: containerd answers
neither over gRPC before 1.7, and what it answers later are numbers of its own process namespace.
"""

import os
import shutil
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from snapshotter.containerd.channel import CONNECT_TIMEOUT_S, connected
from snapshotter.containerd.introspection import Version, version
from snapshotter.errors import ContainerdUnreachable

DEFAULT_CONFIG = Path("/etc/containerd/config.toml")
"""What containerd reads if its command line names nothing, and the file is there."""

SOCKETS: tuple[Path, ...] = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/k3s/containerd/containerd.sock"),  # RKE2 too
    Path("/run/k0s/containerd.sock"),
    Path("/var/snap/microk8s/common/run/containerd.sock"),
    Path("/run/docker/containerd/containerd.sock"),  # the one that dockerd starts for itself
)

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass(frozen=True, slots=True)
class Found:
    """A containerd that runs.

    `binary` and `config_path` are paths as this process sees them; `config_path` is None if it runs on its defaults. `pid` is
    None if it lives in a process namespace that cannot be seen from here.
    """

    address: Path
    version: Version
    pid: int | None
    binary: Path | None
    config_path: Path | None
    flavour: str


def find(address: Path | None = None, config_path: Path | None = None) -> Found:
    """The containerd at `address`, or the first of `SOCKETS` that answers; `config_path` outranks its command line.

    Raises:
        ContainerdUnreachable: none answers.
        ContainerdUnfit: what answers is not containerd, or one before 1.6.
    """
    address = address or _first(SOCKETS)
    with connected(address) as channel:
        running = version(channel)
    pid = peer(address)
    arguments = arguments_of(pid)
    named = config_path or _named_config(pid, arguments)
    if named is None and DEFAULT_CONFIG.exists():
        named = DEFAULT_CONFIG
    binary = _binary(pid)
    return Found(address, running, pid, binary, named, flavour_of(address, named, binary))


def absent(version: Version | None, address: Path | None = None, config_path: Path | None = None) -> Found:
    """A containerd that does not run: its program where PATH has one, its file where it would look for it.

    `version` None stands for one that is not known, where only its files matter.
    """
    named = config_path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    address, binary = address or SOCKETS[0], _binary(None)
    return Found(address, version or Version(0, 0, 0), None, binary, named, flavour_of(address, named, None))


def _first(sockets: Sequence[Path]) -> Path:
    """The first socket at which somebody listens."""
    refused: ContainerdUnreachable | None = None
    for candidate in sockets:
        if candidate.exists():
            try:
                with connected(candidate):
                    return candidate
            except ContainerdUnreachable as error:
                refused = refused or error
    if refused is not None:
        raise refused
    raise ContainerdUnreachable(
        f"no containerd on this node: none of {', '.join(map(str, sockets))} is there; start containerd, or name its socket"
    )


def peer(address: Path) -> int | None:
    """The process that listens at `address`; None if it cannot be seen from here, or listens no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.settimeout(CONNECT_TIMEOUT_S)
        probe.connect(bytes(address))
        pid: int = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        return pid or None
    return None


def arguments_of(pid: int | None) -> list[str]:
    """The command line of a process, without its name; empty if it cannot be read."""
    if pid is None:
        return []
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]]
    except OSError:
        return []


def option(arguments: Sequence[str], *names: str) -> str | None:
    """The value of a command line option under any of its `names`, without dashes; Go takes one dash or two."""
    for position, word in enumerate(arguments):
        key, equals, value = word.partition("=")
        if key.startswith("-") and key.lstrip("-") in names:
            if equals:
                return value
            return arguments[position + 1] if position + 1 < len(arguments) else None
    return None


def _named_config(pid: int | None, arguments: Sequence[str]) -> Path | None:
    named = option(arguments, "config", "c")
    if not named:
        return None
    path = Path(named)
    if not path.is_absolute():
        with suppress(OSError):
            path = Path(os.readlink(f"/proc/{pid}/cwd")) / path  # as containerd resolved it
    return path


def _binary(pid: int | None) -> Path | None:
    """The program of a process; where it was replaced since, the new one, since that is what the next start runs."""
    with suppress(OSError):
        if pid is not None:
            running = Path(f"/proc/{pid}/exe")
            named = Path(os.readlink(running).removesuffix(" (deleted)"))
            return named if named.exists() else running
    on_path = shutil.which("containerd")
    return Path(on_path) if on_path else None


def flavour_of(address: Path, config_path: Path | None, binary: Path | None) -> str:
    """Whose containerd it is, which decides who writes its configuration: "containerd" means the admin does."""
    places = " ".join(f"{path}/" for path in (address, config_path, binary) if path is not None)
    if "/rancher/rke2/" in places:
        return "rke2"
    if "/rancher/k3s/" in places:
        return "k3s"
    if "/run/k3s/" in places:
        return "rke2" if Path("/var/lib/rancher/rke2").is_dir() else "k3s"
    if "/k0s/" in places:
        return "k0s"
    if "/microk8s/" in places:
        return "microk8s"
    return "docker" if "/run/docker/" in places else "containerd"
