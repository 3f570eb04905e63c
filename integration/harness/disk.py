"""A disk of a node's own: a file system in a file, as small as a test needs it."""

import os
import subprocess
from pathlib import Path

BLOCK = 4096


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


def fill_disk(path: Path) -> None:
    """Write somebody else's bytes into a new file until nothing fits any more."""
    with open(path, "xb", buffering=0) as filler:
        for size in (1 << 20, BLOCK):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue
        os.fsync(filler.fileno())
