"""A disk whose cache is lost with the power, for tests: one file in a FUSE mount that remembers what no flush covered.

    python -m integration.power_loss.volatile_disk MOUNT LIVE STABLE

`MOUNT/disk` is the disk; a loop device is made of it, whose flushes arrive as fsync. LIVE holds all writes, STABLE those
before the last flush; both lie on a file system with reflinks. Each line on standard input is a `Cut` as JSON, answered
by a line with what became of the writes. Nothing else is served meanwhile, so a cut is one moment.
"""

import errno
import fcntl
import json
import os
import random
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyfuse3
import trio

FICLONE = 0x40049409
"""Source: ioctl_ficlone(2)."""
SECTOR = 4096
"""What a disk writes whole or not at all."""
FLUSH_WAIT_S = 1.0
DISK_INODE = 2
HANDLE = 1
NAME = b"disk"


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes: write the file `path` that the disk then holds.

    Without `keep` every write has reached the disk; else each that no flush covered is there with that probability, may
    be torn into sectors, and its neighbours in time say nothing of it.
    """

    path: str
    keep: float | None
    seed: int
    before_flush: bool
    """Wait, a second at most, for the next flush, and cut just before it: then most is at stake."""


@dataclass(slots=True)
class Kept:
    """What became of the writes since the last flush."""

    writes: int = 0
    lost: int = 0
    torn: int = 0


class VolatileDisk(pyfuse3.Operations):
    """One file. Every handler runs to its end before the next begins: there is no await in them."""

    def __init__(self, live: str, stable: str) -> None:
        super().__init__()
        self._live = os.open(live, os.O_RDWR | os.O_CLOEXEC)
        self._stable = os.open(stable, os.O_RDWR | os.O_CLOEXEC)
        self._pending: list[tuple[int, bytes]] = []
        self._waiting: tuple[Cut, trio.Event] | None = None
        self._kept = Kept()

    async def lose(self, cut: Cut) -> Kept:
        """Write what the disk holds at the moment that `cut` means."""
        if cut.before_flush:
            self._waiting = cut, trio.Event()
            with trio.move_on_after(FLUSH_WAIT_S):
                await self._waiting[1].wait()
                return self._kept
            self._waiting = None
        return self.cut(cut)

    def cut(self, cut: Cut) -> Kept:
        """Write what the disk holds at this moment."""
        kept = Kept(len(self._pending))
        after = os.open(cut.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(after, FICLONE, self._live if cut.keep is None else self._stable)
            if cut.keep is not None:
                self._keep_some(after, cut.keep, random.Random(cut.seed), kept)
        finally:
            os.close(after)
        return kept

    def _keep_some(self, after: int, keep: float, dice: random.Random, kept: Kept) -> None:
        for offset, data in self._pending:
            if dice.random() < keep:
                os.pwrite(after, data, offset)
            elif len(data) > SECTOR and dice.random() < 0.5:
                kept.torn += 1
                for start in range(0, len(data), SECTOR):
                    if dice.random() < 0.5:
                        os.pwrite(after, data[start : start + SECTOR], offset + start)
            else:
                kept.lost += 1

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o600 if inode == DISK_INODE else stat.S_IFDIR | 0o700
        entry.st_size = os.fstat(self._live).st_size if inode == DISK_INODE else 0
        entry.attr_timeout = entry.entry_timeout = 3600
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(DISK_INODE)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=HANDLE)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._live, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        self._pending.append((off, bytes(buf)))
        return os.pwrite(self._live, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if self._waiting is not None:
            (cut, done), self._waiting = self._waiting, None
            self._kept = self.cut(cut)
            done.set()
        for offset, data in self._pending:
            os.pwrite(self._stable, data, offset)
        self._pending.clear()

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Closing a descriptor is no flush of a disk."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing is held for a descriptor."""


async def _answer(disk: VolatileDisk) -> None:
    buffer = b""
    while True:
        await trio.lowlevel.wait_readable(sys.stdin.fileno())
        piece = os.read(sys.stdin.fileno(), 1 << 16)
        if not piece:
            pyfuse3.terminate()
            return
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            said: dict[str, Any] = asdict(await disk.lose(Cut(**json.loads(line))))
            print(json.dumps(said), flush=True)


async def _serve(disk: VolatileDisk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer, disk)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main(argv: Sequence[str]) -> None:
    """Serve until the mount is gone or standard input ends."""
    mount, live, stable = argv
    disk = VolatileDisk(live, stable)
    pyfuse3.init(disk, mount, {"fsname=volatile-disk", "nodev", "nosuid"})
    try:
        print(json.dumps("mounted"), flush=True)
        trio.run(_serve, disk)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1:])
