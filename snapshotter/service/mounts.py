"""Mounts as containerd takes them: plain `bind` and `overlay`, which every release line understands."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snapshotter.request import LowerDirs
from snapshotter.service.labels import SNAPSHOT_REF

# containerd's unpacker: "extract-<nanoseconds>-<4 characters> <chain id>", behind "<namespace>/<sequence>/". The
# space keeps a container's own name, which cannot hold one, from looking like it.
_EXTRACTION_KEY = re.compile(r"(?:.*/)?extract-[0-9]+-\S+ sha256:[0-9a-f]{64}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) call, options as in fstab."""

    type: str
    source: str
    options: tuple[str, ...]


def bind(source: str, *, writable: bool) -> Mount:
    """A directory as it is."""
    return Mount("bind", source, ("rw" if writable else "ro", "rbind"))


OPTIONS_MAX = 4095
"""Bytes of all options of a mount(2) call: one page with its NUL."""


def overlay(lower: LowerDirs, *, upper: Path | None, work: Path | None, index_off: bool) -> Mount:
    """An overlay; without upper and work directory it is read-only, and of two lower directories at least.

    `index_off` must be true where the kernel has the option: with an index a lower directory may belong to one
    overlay only, and layers are shared by containers.
    """
    options = ["index=off"] if index_off else []
    if upper is not None:
        options += [f"workdir={work}", f"upperdir={upper}"]
    options += lower.options
    options.append("lowerdir=" + ":".join(lower.paths))
    return Mount("overlay", "overlay", tuple(options))


def room_for_lower(*, upper: Path, work: Path) -> int:
    """Bytes that an overlay's options leave for those of `LowerDirs`."""
    return OPTIONS_MAX - len(os.fsencode(f"index=off,workdir={work},upperdir={upper},"))


def kernel_has_index(parameters: Path = Path("/sys/module/overlay/parameters")) -> bool:
    """Whether this kernel's overlay knows the option `index`."""
    return (parameters / "index").exists()


def is_extraction(key: str, labels: Mapping[str, str]) -> bool:
    """Whether containerd prepares this key in order to unpack a layer into it."""
    return SNAPSHOT_REF in labels or _EXTRACTION_KEY.fullmatch(key) is not None
