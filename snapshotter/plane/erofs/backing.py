"""What mounted images are made of, and where they are: known to those who mount nothing."""

from enum import StrEnum
from typing import Final

EROFS_MOUNTS: Final = "e"
"""Directory in the run directory: names of its mounts stand in every overlay, and must be short."""


class Backing(StrEnum):
    """What the kernel reads a mounted image from."""

    FILE = "file"
    LOOP = "loop"
