"""What the overlays of both planes have in common."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from snapshotter.request import LowerLayer

METACOPY_ON: Final = ("metacopy=on", "redirect_dir=on")

_PARAMETERS: Final = Path("/sys/module/overlay/parameters")


def overlay_options(parameters: Path = _PARAMETERS) -> tuple[str, ...]:
    """Options of every overlay that has a lazy layer, on either plane.

    Without `metacopy` a file that was only chmod'ed in a container of the erofs plane would not be found by one of the fuse
    plane, nor a renamed directory without `redirect_dir`. Also a chown of a whole tree then fetches nothing. Kernels
    before 4.19 do not have the first, and cannot have the erofs plane either.
    """
    return METACOPY_ON if (parameters / "metacopy").exists() else ()


def without_repeats(chain: Iterable[LowerLayer]) -> list[LowerLayer]:
    """The chain with equal layers once, the topmost.

    overlayfs refuses a directory that occurs twice (ELOOP), and what a lower one adds is hidden anyway.
    """
    seen: set[int] = set()
    left = []
    for lower in chain:
        if lower.layer_number is not None:
            if lower.layer_number in seen:
                continue
            seen.add(lower.layer_number)
        left.append(lower)
    return left
