"""`<top>/<domain>/<ab>/<hex>`: names of objects on disk, reached through directory descriptors, symlinks never followed."""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapshotter.store.domains import check_domain, is_domain

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a planted fifo must not wait for its other end.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARD = re.compile(r"[0-9a-f]{2}")
_HEX = re.compile(r"[0-9a-f]{64}")
# With a suffix while it replaces another, which a killed process leaves.
_LARGE = re.compile(r"[0-9a-f]{64}-[0-9a-f]{32}(\.tmp)?")
# What opening a planted symlink, socket or device says.
_NOT_OURS = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
# A file system without hard links, or a file with as many as it can have.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
SHARDS = tuple(f"{number:02x}" for number in range(256))


class DomainDirectories:
    """`<top>/<domain>`, each opened once and kept open; mode 0700, made when first needed."""

    def __init__(self, top: Path) -> None:
        self.path = top
        self.fd = _open_top(top)
        self._lock = threading.Lock()  # guards _domains and _stale, and changes of `fd`
        self._domains: dict[str, int] = {}
        self._stale: list[int] = []

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
        """The descriptor of a domain's directory, which is made when it is missing, also after somebody deleted it.

        Raises:
            StoreError: the name cannot be a domain.
            OSError: the disk refused.
        """
        renewed = False
        while True:
            fd = self.domain(domain)
            if fd is None:
                try:
                    _make_directory(domain, self.fd)
                    continue
                except FileNotFoundError:
                    if renewed:
                        raise
            elif renewed or os.fstat(fd).st_nlink:
                return fd
            # A deleted directory takes no new names for as long as it is held open.
            self._renew()
            renewed = True

    def domains(self) -> list[str]:
        """Domains that have a directory, sorted."""
        with os.scandir(self.fd) as entries:
            return sorted(
                entry.name for entry in entries if is_domain(entry.name) and entry.is_dir(follow_symlinks=False)
            )

    def close(self) -> None:
        """Close every descriptor."""
        with self._lock:
            for fd in (*self._stale, *self._domains.values(), self.fd):
                os.close(fd)
            self._stale.clear()
            self._domains.clear()

    def _renew(self) -> None:
        """Open everything anew by its path; the old descriptors stay open, since others may be using them."""
        fd = _open_top(self.path)
        with self._lock:
            self._stale += [*self._domains.values(), self.fd]
            self._domains.clear()
            self.fd = fd


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
        return self.named(domain, digest.hex())

    def place(self, source_dir: int, source: str, domain: str, digest: bytes) -> None:
        """Move a file into its place, over whatever has the name; as `move_to`, not by a rename where there are hard links.

        Raises:
            OSError: the disk refused; the file may have both names then.
        """
        name = digest.hex()
        with self._shard(domain, name[:2], create=True) as shard:
            try:
                self._link_over(source, source_dir, name, shard)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.rename(source, name, src_dir_fd=source_dir, dst_dir_fd=shard)
                return
        os.unlink(source, dir_fd=source_dir)

    @staticmethod
    def _link_over(source: str, source_dir: int, name: str, shard: int) -> None:
        try:
            os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=shard, follow_symlinks=False)
        except FileExistsError:
            os.unlink(name, dir_fd=shard)
            os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=shard, follow_symlinks=False)

    def link(self, from_domain: str, to_domain: str, digest: bytes) -> bool:
        """Give an object of one domain a name in another; False when the file system or its link limit forbids it."""
        name = digest.hex()
        with self._shard(from_domain, name[:2]) as source, self._shard(to_domain, name[:2], create=True) as target:
            try:
                os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            except OSError:
                return False
        return True

    def named(self, domain: str, name: str) -> os.stat_result | None:
        """Status of the file of this name in the shard of its first two letters; None unless it is a regular file."""
        try:
            with self._shard(domain, name[:2]) as shard:
                status = os.stat(name, dir_fd=shard, follow_symlinks=False)
        except OSError as error:
            if _means_absent(error):
                return None
            raise
        return status if stat.S_ISREG(status.st_mode) else None

    def unlink_named(self, domain: str, name: str) -> None:
        """Remove the file of this name; nothing happens if it is not there, or if that is a directory and none of ours."""
        with suppress(FileNotFoundError, IsADirectoryError), self._shard(domain, name[:2]) as shard:
            os.unlink(name, dir_fd=shard)

    def large_names(self, domain: str, shard: str, digest: bytes | None = None) -> list[str]:
        """Names of large files by identity in a shard, all of them or those with this digest."""
        parent = self.domain(domain)
        if parent is None:
            return []
        try:
            fd = os.open(shard, DIRECTORY_FLAGS, dir_fd=parent)
        except OSError as error:
            if _means_absent(error):
                return []
            raise
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
        start = "" if digest is None else digest.hex()
        return [name for name in names if _LARGE.fullmatch(name) and name.startswith(start)]

    def link_to(self, other: "ObjectTree", domain: str, digest: bytes, aside: str, name: str = "") -> None:
        """Give an object a name in another tree, or another one here, instead of whatever has it; see `take_link`.

        Raises:
            OSError: the object has gone, or the disk refused.
        """
        with self._shard(domain, digest.hex()[:2]) as shard:
            other.take_link(shard, aside, domain, digest, name)

    def take_link(self, source_dir: int, aside: str, domain: str, digest: bytes, name: str = "") -> None:
        """Link the object in `source_dir` into its place, or to `name` in its shard, over whatever has the name.

        `aside` is a name that nobody uses, so that the name is not missing for a moment if it was here.

        Raises:
            OSError: the disk refused, or the file has as many names as it can have.
        """
        source = digest.hex()
        name = name or source
        with self._shard(domain, name[:2], create=True) as shard:
            try:
                os.link(source, name, src_dir_fd=source_dir, dst_dir_fd=shard, follow_symlinks=False)
            except FileExistsError:
                with suppress(FileNotFoundError):  # of a process that was killed at this point
                    os.unlink(aside, dir_fd=shard)
                os.link(source, aside, src_dir_fd=source_dir, dst_dir_fd=shard, follow_symlinks=False)
                try:
                    os.rename(aside, name, src_dir_fd=shard, dst_dir_fd=shard)
                except OSError:
                    os.unlink(aside, dir_fd=shard)
                    raise

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
        """Move an object to the same name in another tree, over whatever has it; False if it was not here.

        By a second name: a rename between directories takes the lock of the whole file system. The kernel holds that while it
        copies a directory of a FUSE layer up and asks us for its attributes, and this is done where those are answered.

        Raises:
            OSError: the disk refused.
        """
        name = digest.hex()
        try:
            with self._shard(domain, name[:2]) as source:
                other.take_name(source, domain, digest)
                os.unlink(name, dir_fd=source)
        except FileNotFoundError:
            return False
        return True

    def take_name(self, source_dir: int, domain: str, digest: bytes) -> None:
        """Give the object in `source_dir` its name here, over whatever has it.

        Raises:
            OSError: the object has gone, or the disk refused.
        """
        name = digest.hex()
        with self._shard(domain, name[:2], create=True) as shard:
            self._link_over(name, source_dir, name, shard)

    def move_shard_to(self, other: "ObjectTree", domain: str, shard: str) -> None:
        """Move all objects of a shard at once, or one by one where the other tree already has the shard."""
        source = self.domain(domain)
        if source is None:
            return
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
        try:
            parent = self.domain(domain)
            if parent is None or not _SHARD.fullmatch(shard):
                return []
            fd = os.open(shard, DIRECTORY_FLAGS, dir_fd=parent)
        except OSError as error:
            if _means_absent(error):
                return []
            raise
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


def _open_top(top: Path) -> int:
    # Each by itself: a parent that mkdir makes on the way is readable to others.
    top.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    top.mkdir(mode=0o700, exist_ok=True)
    return os.open(top, DIRECTORY_FLAGS)


def _make_directory(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)


def _means_absent(error: OSError) -> bool:
    """Symlinks, fifos and directories where an object should be are no objects."""
    absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return absent or error.errno in _NOT_OURS
