"""`<root>/late/<place>`: second names of objects, for the moment in which the kernel looks for one that has just come.

overlayfs asks `objects` first, then the gate, then `late`. What the gate fetched meanwhile is in `objects`, where this
lookup does not look again, so it gets a name in the layer behind the gate. A few seconds later nobody needs that name:
the next lookup finds the object.
"""

import itertools
import os
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from snapshotter.store.tree import DIRECTORY_FLAGS, ObjectTree

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
    ) -> None:
        """Begin with none: what an earlier process left in `top` is removed, while `top` stays the directory it is.

        `lock_of(digest)` guards the names of a digest, here as in `objects`; `clock` is monotonic, in seconds.

        Raises:
            OSError: the disk refused.
        """
        _empty(top)
        self._tree = ObjectTree(top / place)
        self._objects = objects
        self._lock_of = lock_of
        self._clock = clock
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards _used; taken inside lock_of(digest)
        # When a name was last asked for, in that order.
        self._used: OrderedDict[_Name, float] = OrderedDict()

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

    def _note(self, key: _Name) -> None:
        with self._lock:
            self._used[key] = self._clock()
            self._used.move_to_end(key)

    def _oldest(self, limit: float) -> _Name | None:
        with self._lock:
            key = next(iter(self._used), None)
            return key if key is not None and self._used[key] <= limit else None


def _empty(top: Path) -> None:
    """Make `top` an empty directory of our own. Mounts of an earlier process may hold it, so it is never another one."""
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(top, DIRECTORY_FLAGS)
    try:
        os.fchmod(fd, 0o700)
        for name in os.listdir(fd):
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
