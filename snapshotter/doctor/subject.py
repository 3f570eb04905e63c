"""Who is examined: a node with its configuration, and the ways in which it can be asked."""

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from snapshotter.api import control_pb2 as pb
from snapshotter.config import Config

CONNECT_TIMEOUT_S: Final = 3.0


class DaemonVoice(Protocol):
    """Our daemon. Every call blocks for a limited time and raises SnapshotterError."""

    def status(self) -> pb.StatusResponse:
        """How it is."""

    def images(self, most: int) -> list[str]:
        """References of at most `most` images that were pulled through it."""


class Listener(StrEnum):
    """Who is behind a socket."""

    NOBODY = "nobody"
    SOMEBODY = "somebody"
    DENIED = "denied"
    """This user may not ask."""
    SILENT = "silent"
    """The connection is not accepted in time."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the kernel and the distribution keep what they say of themselves; `top` is another directory in tests."""

    top: Path = Path("/")
    systemctl: str = "systemctl"
    now: Callable[[], float] = time.time

    @property
    def proc(self) -> Path:
        """The process file system."""
        return self.top / "proc"

    @property
    def own_mounts(self) -> Path:
        """The table of mounts of this process."""
        return self.proc / "self/mountinfo"


@dataclass(frozen=True, slots=True)
class Subject:
    """The node as the command line describes it.

    `config_fault` is what is wrong with the configuration file; `config` are the defaults then. `containerd` is None where
    its socket is to be found. `images` are references.
    """

    config: Config
    config_path: Path | None
    config_fault: str
    address: Path
    containerd: Path | None
    images: tuple[str, ...]
    timeout_s: float
    daemon: DaemonVoice
    uid: int
    machine: Machine = field(default_factory=Machine)


def who_listens(address: Path) -> Listener:
    """Connect to a unix socket once, and say nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(bytes(address))
        except TimeoutError:
            return Listener.SILENT
        except OSError as error:
            return Listener.DENIED if error.errno in (errno.EACCES, errno.EPERM) else Listener.NOBODY
    return Listener.SOMEBODY
