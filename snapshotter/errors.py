"""Every error of the snapshotter, with what each of its three doors makes of it.

A class carries the errno that a FUSE reply uses, the gRPC status that the service answers and the exit code of the
command line, so that no door keeps a table of its own; and the reason that it is for a layer not to be lazy. Foreign exceptions are mapped once, in the room that calls
the library.

    SnapshotterError
    ├ ConfigError ─ HostsError
    ├ FormatError ─ IntegrityError
    ├ NotLazy
    ├ RegistryError ─ RegistryUnreachable · RegistryDenied · RegistryUntrusted · BlobMissing · RangeUnsupported
    ├ StoreError ─ StoreFull · StoreLocked · StateRevision
    ├ SnapshotError ─ NotFound · AlreadyExists · FailedPrecondition · InvalidArgument
    ├ PlaneError ─ WaiterKilled
    ├ ContainerdError ─ ContainerdUnreachable · ContainerdUnfit
    ├ RecorderError
    └ DaemonUnreachable
"""

import errno as _errno
from enum import IntEnum, StrEnum
from typing import ClassVar


class Status(IntEnum):
    """gRPC status codes by number, so that this module imports no gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class Reason(StrEnum):
    """Why a layer is not lazy: a bounded set, usable in logs, tables and metrics."""

    DENIED = "denied-by-config"
    NO_LABELS = "no-source-labels"
    BAD_LABELS = "bad-source-labels"
    NOT_IN_MANIFEST = "layer-not-in-manifest"
    MEDIA_TYPE = "unsupported-media-type"
    NOT_LAZY_FORMAT = "not-a-lazy-format"
    NO_ANCHOR = "no-toc-digest"
    TOC_MISMATCH = "toc-digest-mismatch"
    TOC_INVALID = "toc-invalid"
    LIMIT = "over-a-limit"
    UNREACHABLE = "registry-unreachable"
    REGISTRY_DENIED = "registry-denied"
    REGISTRY_UNTRUSTED = "registry-untrusted"
    REGISTRY_FAULT = "registry-fault"
    HOSTS = "bad-hosts-toml"
    BLOB_MISSING = "blob-missing"
    NO_RANGES = "registry-without-ranges"
    TIMEOUT = "timeout"
    BUSY = "too-many-pulls"
    DISK = "disk"
    CONFLICT = "other-content-under-this-name"
    INTERNAL = "internal-error"


class SnapshotterError(Exception):
    """Root of the tree. The message says what happened, to what, and what to do."""

    errno: ClassVar[int] = _errno.EIO
    status: ClassVar[Status] = Status.UNKNOWN
    exit_code: ClassVar[int] = 1
    reason: Reason = Reason.INTERNAL


class ConfigError(SnapshotterError):
    """The configuration file or an option is wrong."""

    status = Status.INVALID_ARGUMENT
    exit_code = 2


class HostsError(ConfigError):
    """A registry's hosts.toml, or a certificate that it names, is wrong."""

    reason = Reason.HOSTS


class FormatError(SnapshotterError):
    """Bytes do not follow the format they claim to follow."""

    status = Status.DATA_LOSS
    exit_code = 10
    reason = Reason.NOT_LAZY_FORMAT


class IntegrityError(FormatError):
    """Bytes do not have the digest they must have."""

    exit_code = 11


class NotLazy(SnapshotterError):
    """A layer cannot be mounted lazily; containerd unpacks it the ordinary way."""

    status = Status.FAILED_PRECONDITION
    exit_code = 12

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RegistryError(SnapshotterError):
    """A registry answered something we cannot use."""

    status = Status.UNAVAILABLE
    exit_code = 20
    reason = Reason.REGISTRY_FAULT


class RegistryUnreachable(RegistryError):
    """No answer in time, or a server error; asking again may help."""

    exit_code = 21
    reason = Reason.UNREACHABLE


class RegistryDenied(RegistryError):
    """Credentials were refused; asking again will not help.

    For a process that reads a file it is the I/O error that it is on the erofs plane: its own rights are not the matter.
    """

    status = Status.PERMISSION_DENIED
    exit_code = 22
    reason = Reason.REGISTRY_DENIED


class RegistryUntrusted(RegistryError):
    """TLS: the server is not who it should be, does not take us for who we are, or speaks none."""

    exit_code = 25
    reason = Reason.REGISTRY_UNTRUSTED


class BlobMissing(RegistryError):
    """The registry does not have what was asked for."""

    status = Status.NOT_FOUND
    exit_code = 23
    reason = Reason.BLOB_MISSING


class RangeUnsupported(RegistryError):
    """The registry answers a range request with something else than that range."""

    status = Status.FAILED_PRECONDITION
    exit_code = 24
    reason = Reason.NO_RANGES


class StoreError(SnapshotterError):
    """The node's own disk or database failed."""

    status = Status.INTERNAL
    exit_code = 30
    reason = Reason.DISK


class StoreFull(StoreError):
    """No room: the file system is full, or the quota is and nothing can leave."""

    errno = _errno.ENOSPC
    status = Status.RESOURCE_EXHAUSTED
    exit_code = 31


class StoreLocked(StoreError):
    """Another instance uses this directory."""

    status = Status.FAILED_PRECONDITION
    exit_code = 32


class StateRevision(StoreError):
    """The directory was written by a newer version."""

    status = Status.FAILED_PRECONDITION
    exit_code = 33


class SnapshotError(SnapshotterError):
    """containerd asked for something that its own rules do not allow."""


class NotFound(SnapshotError):
    """No such snapshot, layer or image."""

    errno = _errno.ENOENT
    status = Status.NOT_FOUND
    exit_code = 40


class AlreadyExists(SnapshotError):
    """The name is taken; after a remote Prepare this is the word for success."""

    errno = _errno.EEXIST
    status = Status.ALREADY_EXISTS
    exit_code = 41


class FailedPrecondition(SnapshotError):
    """The thing is there, but not in a state that allows the call."""

    errno = _errno.EBUSY
    status = Status.FAILED_PRECONDITION
    exit_code = 42


class InvalidArgument(SnapshotError):
    """The request itself is wrong."""

    errno = _errno.EINVAL
    status = Status.INVALID_ARGUMENT
    exit_code = 43


class PlaneError(SnapshotterError):
    """The kernel refused a mount or a feature that a plane needs."""

    status = Status.INTERNAL
    exit_code = 50


class TakeOverRefused(PlaneError):
    """The FUSE connection of an earlier daemon cannot be served by this one."""


class KeeperGone(PlaneError):
    """The process that keeps the FUSE connection has ended, or ends at this moment: there may be another."""


class WaiterKilled(PlaneError):
    """A process that waited for a file was killed: it is let go."""

    errno = _errno.EINTR


class DaemonUnreachable(SnapshotterError):
    """The command line cannot talk to a daemon."""

    status = Status.UNAVAILABLE
    exit_code = 60


class ContainerdError(SnapshotterError):
    """containerd refused what it was asked."""

    status = Status.UNAVAILABLE
    exit_code = 61


class ContainerdUnreachable(ContainerdError):
    """Nobody answers at containerd's socket, or not in time."""

    exit_code = 62


class ContainerdUnfit(ContainerdError):
    """containerd is too old for this, or is not configured for this snapshotter."""

    status = Status.FAILED_PRECONDITION
    exit_code = 63


class RecorderError(SnapshotterError):
    """The kernel does not tell which files a container reads."""

    status = Status.FAILED_PRECONDITION
    exit_code = 64


def reason_of(error: SnapshotterError | OSError) -> Reason:
    """Why a layer is not lazy if this went wrong on the way to it."""
    if isinstance(error, SnapshotterError):
        return error.reason
    return Reason.TIMEOUT if isinstance(error, TimeoutError) else Reason.DISK
