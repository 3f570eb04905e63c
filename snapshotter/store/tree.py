"""`<top>/<domain>/<ab>/<hex>`: names of objects on disk, reached through directory descriptors, symlinks never followed."""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshotter.store.domains import check_domain

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a planted fifo must not wait for its other end.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARD = re.compile(r"[0-9a-f]{2}")
_HEX = re.compile(r"[0-9a-f]{64}")
# What opening a planted symlink, socket or device says.
_NOT_OURS = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
SHARDS = tuple(f"{number:02x}" for number in range(256))


class DomainDirectories:
    """`<top>/<domain>`, each opened once and kept open; mode 0700, made when first needed."""

    def __init__(self, top: Path) -> None:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = top
        self.fd = os.open(top, DIRECTORY_FLAGS)
        self._lock = threading.Lock()  # guards _domains
        self._domains: dict[str, int] = {}

    def domain(self, domain: str) -> int | None:
        """The descriptor of a domain's directory; None if there is none.

        Raises:
            StoreError: the name cannot be a domain.
            OSError: the disk refused.
        """
        found = self._domains.get(domain)
        if found is not None:
            return found
        check_domain(domain)
        with self._lock:
            if domain in self._domains:
                return self._domains[domain]
            try:
                fd = os.open(domain, DIRECTORY_FLAGS, dir_fd=self.fd)
            except FileNotFoundError:
                return None
            self._domains[domain] = fd
            return fd

    def make_domain(self, domain: str) -> int:
        """The descriptor of a domain's directory, which is made when it is missing.

        Raises:
            StoreError: the name cannot be a domain.
            OSError: the disk refused.
        """
        while (fd := self.domain(domain)) is None:
            _make_directory(domain, self.fd)
        return fd

    def domains(self) -> list[str]:
        """Domains that have a directory, sorted."""
        with os.scandir(self.fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for fd in (*self._domains.values(), self.fd):
                os.close(fd)
            self._domains.clear()


class ObjectTree(DomainDirectories):
    """Files named by a raw digest in directories named by the digest's first byte."""

    @contextmanager
    def _shard(self, domain: str, shard: str, *, create: bool = False) -> Iterator[int]:
        """The directory of a shard. O_NOFOLLOW guards only a path's last part, so each part is opened by itself."""
        parent = self.make_domain(domain) if create else self.domain(domain)
        if parent is None:
            raise FileNotFoundError(domain)
        try:
            fd = os.open(shard, _STEP_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            _make_directory(shard, parent)
            fd = os.open(shard, _STEP_FLAGS, dir_fd=parent)
        try:
            yield fd
        finally:
            os.close(fd)

    def open(self, domain: str, digest: bytes) -> tuple[int, os.stat_result] | None:
        """A read-only descriptor of the object and its status; None unless a regular file has that name."""
        name = digest.hex()
        try:
            with self._shard(domain, name[:2]) as shard:
                fd = os.open(name, FILE_FLAGS, dir_fd=shard)
        except OSError as error:
            if _means_absent(error):
                return None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return None
        return fd, status

    def status(self, domain: str, digest: bytes) -> os.stat_result | None:
        """Status of the object; None unless a regular file has that name."""
        name = digest.hex()
        try:
            with self._shard(domain, name[:2]) as shard:
                status = os.stat(name, dir_fd=shard, follow_symlinks=False)
        except OSError as error:
            if _means_absent(error):
                return None
            raise
        return status if stat.S_ISREG(status.st_mode) else None

    def place(self, source_dir: int, source: str, domain: str, digest: bytes) -> None:
        """Rename a file into its place, over whatever has the name."""
        name = digest.hex()
        with self._shard(domain, name[:2], create=True) as shard:
            os.rename(source, name, src_dir_fd=source_dir, dst_dir_fd=shard)

    def link(self, from_domain: str, to_domain: str, digest: bytes) -> bool:
        """Give an object of one domain a name in another; False when the file system or its link limit forbids it."""
        name = digest.hex()
        with self._shard(from_domain, name[:2]) as source, self._shard(to_domain, name[:2], create=True) as target:
            try:
                os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            except OSError:
                return False
        return True

    def unlink(self, domain: str, digest: bytes) -> bool:
        """Remove the name; False if it was not there."""
        name = digest.hex()
        try:
            with self._shard(domain, name[:2]) as shard:
                os.unlink(name, dir_fd=shard)
        except FileNotFoundError:
            return False
        return True

    def move_to(self, other: "ObjectTree", domain: str, digest: bytes) -> bool:
        """Move an object to the same name in another tree; False if it was not here."""
        name = digest.hex()
        try:
            with self._shard(domain, name[:2]) as shard:
                other.place(shard, name, domain, digest)
        except FileNotFoundError:
            return False
        return True

    def move_shard_to(self, other: "ObjectTree", domain: str, shard: str) -> None:
        """Move all objects of a shard at once, or one by one where the other tree already has the shard."""
        source = self.domain(domain)
        target = other.make_domain(domain)
        try:
            os.rename(shard, shard, src_dir_fd=source, dst_dir_fd=target)
        except FileNotFoundError:
            return
        except OSError:
            for digest, _ in list(self.shard(domain, shard)):
                self.move_to(other, domain, digest)

    def shard(self, domain: str, shard: str) -> list[tuple[bytes, os.stat_result]]:
        """Digest and status of every object of a shard; other names are not ours and left alone."""
        parent = self.domain(domain)
        if parent is None or not _SHARD.fullmatch(shard):
            return []
        try:
            fd = os.open(shard, DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            return []
        found = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if not (_HEX.fullmatch(entry.name) and entry.name.startswith(shard)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        found.append((bytes.fromhex(entry.name), status))
        finally:
            os.close(fd)
        return found


def _make_directory(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)


def _means_absent(error: OSError) -> bool:
    """Symlinks, fifos and directories where an object should be are no objects."""
    absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return absent or error.errno in _NOT_OURS
