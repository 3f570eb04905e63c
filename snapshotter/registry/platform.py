"""Platforms: what this node runs, and in which order containerd prefers what an index offers. Pure.

Source: OCI Image Specification 1.1, image-index.md, platform; names as Go's GOOS and GOARCH; the order is containerd's.
"""

import re
from dataclasses import dataclass

_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "loongarch64": ("loong64", ""),
}
_ARM_MACHINE = re.compile(r"armv([5-8])[a-z]*")
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and its variant ("" if there is but one)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host_platform(machine: str) -> Platform:
    """The platform of a Linux node whose uname says `machine`."""
    if arm := _ARM_MACHINE.fullmatch(machine):
        return Platform("linux", "arm", f"v{arm[1]}")
    return normalised(Platform("linux", machine))


def normalised(platform: Platform) -> Platform:
    """`platform` with one spelling per architecture, so that equal ones compare equal."""
    architecture, variant = platform.architecture.lower(), platform.variant.lower()
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = implied or variant
    if variant.isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    if (architecture, variant) == ("arm", ""):
        variant = "v7"
    return Platform(platform.os.lower() or "linux", architecture, variant)


def compatible(host: Platform) -> tuple[Platform, ...]:
    """What `host` can run, best first: itself, older variants, then the 32-bit relative of its architecture."""
    own = normalised(host)
    found = [own]
    if own.architecture == "amd64":
        found += [Platform(own.os, "amd64"), Platform(own.os, "386")]
    elif own.architecture == "arm64":
        found += [Platform(own.os, "arm64"), *(Platform(own.os, "arm", variant) for variant in _ARM_VARIANTS)]
    elif own.architecture == "arm" and own.variant in _ARM_VARIANTS:
        found += [Platform(own.os, "arm", v) for v in _ARM_VARIANTS[_ARM_VARIANTS.index(own.variant) + 1 :]]
    return tuple(dict.fromkeys(found))
