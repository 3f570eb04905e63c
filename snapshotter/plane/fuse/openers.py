"""Who opened what of the FUSE mount: a READ does not say which process it is for, an OPEN does.

Advice, no account: it names the threads that opened a file last, of which any may have ended or handed the file on.
"""

from collections.abc import Mapping

INODES_KEPT = 16_384
"""Files that are held open at one time and remembered; beyond that the one that was opened first is forgotten."""

THREADS_KEPT = 16
"""Of each file the last so many that opened it."""


class Openers:
    """The open files of the mount, by inode number. Used on the trio thread.

    A file that is not open any more is forgotten: RELEASE comes for every OPEN, also of what is mapped or executed.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, tuple[int, ...]]] = {}

    def opened(self, inode: int, thread: int) -> None:
        """Note an OPEN by a thread, 0 if it cannot be seen from our pid namespace."""
        count, threads = self._open.pop(inode, (0, ()))
        if len(self._open) >= INODES_KEPT:
            del self._open[next(iter(self._open))]
        self._open[inode] = count + 1, (*threads[1 - THREADS_KEPT :], thread)

    def released(self, inode: int) -> None:
        """Note a RELEASE; one of a file that was forgotten changes nothing."""
        count, threads = self._open.pop(inode, (0, ()))
        if count > 1:
            self._open[inode] = count - 1, threads

    def all(self) -> Mapping[int, tuple[int, ...]]:
        """The threads that opened each open file last, the latest at the end. A copy."""
        return {inode: threads for inode, (_, threads) in self._open.items()}
