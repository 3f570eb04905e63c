"""Where an image is read from or written to, as the command line names it."""

from dataclasses import dataclass
from pathlib import Path

from snapshotter.errors import ConfigError
from snapshotter.registry.reference import Reference, parse_reference

_DOCKER = "docker://"
_OCI = "oci:"
# Names of other tools for places that we cannot use; taken as references they would be odd images of Docker Hub.
_FOREIGN = ("docker-archive:", "oci-archive:", "docker-daemon:", "containers-storage:", "dir:")


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An OCI image layout in the directory `path`; `tag` is the image's name in it, None for its only image."""

    path: Path
    tag: str | None

    def __str__(self) -> str:
        return f"{_OCI}{self.path}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class RegistryLocation:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)


Location = LayoutLocation | RegistryLocation


def parse_location(text: str) -> Location:
    """Return the place that `text` names: `host/name:tag`, `docker://host/name:tag` or `oci:DIR[:TAG]`.

    Raises:
        ConfigError: none of these.
    """
    if text.startswith(_OCI):
        path, _, tag = text.removeprefix(_OCI).partition(":")
        if not path:
            raise ConfigError(f"{text!r} names no directory; write oci:DIRECTORY or oci:DIRECTORY:TAG")
        return LayoutLocation(Path(path), tag or None)
    for prefix in _FOREIGN:
        if text.startswith(prefix):
            raise ConfigError(f"{text!r}: {prefix} is not supported; use docker://HOST/NAME:TAG or oci:DIRECTORY:TAG")
    return RegistryLocation(parse_reference(text.removeprefix(_DOCKER)))
