"""`<root>/late/<place>`: second names of objects, for the moment in which the kernel looks for one that has just come.

overlayfs asks `objects` first, then the gate, then `late`. What the gate fetched meanwhile is in `objects`, where this
lookup does not look again, so it gets a name in the layer behind the gate. A few seconds later nobody needs that name:
the next lookup finds the object.
"""

import itertools
import os
import re
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from snapshotter.store.tree import DIRECTORY_FLAGS, SHARDS, ObjectTree

_NAME = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{32})?")
_Name = tuple[str, str]
"""(domain, name of a file in its shard)"""


class LateLinks:
    """Hard links of objects, each removed a while after its last use. Safe from any thread.

    A name outlives its object when that is removed: a process may stand between two lookups. Its bytes are in no
    account then, until the sweep.
    """

    def __init__(
        self,
        top: Path,
        place: str,
        objects: ObjectTree,
        lock_of: Callable[[bytes], threading.Lock],
        clock: Callable[[], float],
        *,
        keep: bool,
    ) -> None:
        """Begin with none of our own. What an earlier process left in `top` is removed, while `top` stays the directory it is.

        With `keep` that is done by the first sweep that comes late enough: a process may stand between the answer of a
        daemon that has died and its look into this directory. Without, at once: the files may be torn.

        `lock_of(digest)` guards the names of a digest, here as in `objects`; `clock` is monotonic, in seconds.

        Raises:
            OSError: the disk refused.
        """
        _prepare(top)
        if not keep:
            _empty(top)
        self._top = top
        self._place = place
        self._tree = ObjectTree(top / place)
        self._objects = objects
        self._lock_of = lock_of
        self._clock = clock
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards _used; taken inside lock_of(digest)
        # When a name was last asked for, in that order.
        self._used: OrderedDict[_Name, float] = OrderedDict()
        # Since when names of an earlier process are left.
        self._left: float | None = clock() if keep else None

    def link(self, domain: str, digest: bytes, size: int, name: str = "") -> bool:
        """Whether the object of that digest and size has a name here now, for as long again as a new one.

        The name is the object's own, or `name`, that of a large file.

        Raises:
            OSError: the disk refused, or the object has as many names as a file can have.
        """
        with self._lock_of(digest):
            found = self._objects.status(domain, digest)
            if found is None or found.st_size != size:
                return False
            name = name or digest.hex()
            present = self._tree.named(domain, name)
            if present is None or present.st_ino != found.st_ino:
                try:
                    self._objects.link_to(self._tree, domain, digest, f"{next(self._numbers)}.tmp", name)
                except FileNotFoundError:  # deleted behind our back between the two looks
                    return False
            self._note((domain, name))
            return True

    def sweep(self, older_than_s: float) -> None:
        """Remove the names whose last `link` was `older_than_s` ago or longer.

        Raises:
            OSError: the disk refused to remove one; it is tried again later, and those after it with the next sweep.
        """
        limit = self._clock() - older_than_s
        if self._left is not None and self._left <= limit:
            self._clear()
            self._left = None
        while (key := self._oldest(limit)) is not None:
            domain, name = key
            with self._lock_of(bytes.fromhex(name[:64])):
                with self._lock:
                    # Meanwhile linked again, or removed by another sweep.
                    if self._used.get(key, limit + 1) > limit:
                        continue
                    del self._used[key]
                try:
                    self._tree.unlink_named(domain, name)
                except OSError:
                    self._note(key)
                    raise

    def close(self) -> None:
        """Close every descriptor; the names stay until the next start."""
        self._tree.close()

    def _clear(self) -> None:
        """Remove every name that this process has not linked."""
        _empty(self._top, but=self._place)
        for domain in self._tree.domains():
            for shard in SHARDS:
                for name in _names(self._tree.path / domain / shard):
                    with self._lock_of(bytes.fromhex(name[:64])):
                        with self._lock:
                            if (domain, name) in self._used:
                                continue
                        self._tree.unlink_named(domain, name)

    def _note(self, key: _Name) -> None:
        with self._lock:
            self._used[key] = self._clock()
            self._used.move_to_end(key)

    def _oldest(self, limit: float) -> _Name | None:
        with self._lock:
            key = next(iter(self._used), None)
            return key if key is not None and self._used[key] <= limit else None


def _prepare(top: Path) -> None:
    """Make `top` a directory of our own. Mounts of an earlier process may hold it, so it is never another one."""
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(top, DIRECTORY_FLAGS)
    try:
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _names(shard: Path) -> list[str]:
    """What looks like a name of ours in a directory."""
    try:
        return [name for name in os.listdir(shard) if _NAME.fullmatch(name)]
    except FileNotFoundError:
        return []


def _empty(top: Path, but: str = "") -> None:
    """Remove all that lies in `top`, but for one name."""
    fd = os.open(top, DIRECTORY_FLAGS)
    try:
        for name in set(os.listdir(fd)) - {but}:
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
