"""A disk of a node's own: a file system in a file, as small as a test needs it; and one that fails when a test says so."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 4096
REFILL_S = 0.02
_PRELOADED = Path(__file__).with_name("bad_disk.c")


def mount_disk(image: Path, target: Path, size: int) -> None:
    """Make a file system of `size` bytes in `image` and mount it at `target`, private to root.

    It is ext4 as a node may have it, but that root gets no share of its own: what is full for one is full for all. The
    loop device goes when the mount does.
    """
    with open(image, "xb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-b", str(BLOCK), image], check=True)
    target.mkdir()
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    target.chmod(0o700)
    (target / "lost+found").rmdir()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Somebody else's file at `path` takes every byte that is free, at once and whenever some are, until the block ends."""
    over = threading.Event()
    with open(path, "xb", buffering=0) as filler:

        def fill() -> None:
            while not over.is_set():
                for size in (1 << 20, BLOCK):
                    try:
                        while not over.is_set():
                            filler.write(bytes(size))
                    except OSError:
                        continue
                full.set()
                over.wait(REFILL_S)

        full = threading.Event()
        thread = threading.Thread(target=fill)
        thread.start()
        try:
            full.wait()
            yield
        finally:
            over.set()
            thread.join()
            path.unlink()


class BadDisk:
    """A disk that fails on order, for programs that are started with `environ`: all paths with `part` in them.

    It fails calls of the C library; what the kernel reads by itself does not come by here.
    """

    def __init__(self, folder: Path, part: str) -> None:
        library = folder / "bad_disk.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, _PRELOADED, "-ldl"], check=True)
        self._orders = folder / "bad_disk"
        self.environ = {
            "LD_PRELOAD": str(library),
            "BAD_DISK_PART": part,
            "BAD_DISK_ORDERS": str(self._orders),
        }
        self._order(0, 0)

    @contextmanager
    def failing(self, *, writes: int = 0, reads: int = 0) -> Iterator[None]:
        """All that writes, or reads of cached content, end with an errno until the block ends."""
        self._order(writes, reads)
        try:
            yield
        finally:
            self._order(0, 0)

    def _order(self, writes: int, reads: int) -> None:
        aside = self._orders.with_suffix(".aside")
        aside.write_text(f"{writes} {reads}\n")
        aside.rename(self._orders)
