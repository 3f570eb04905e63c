"""Where an image is read from or written to, as the command line names it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from snapshotter.errors import ConfigError
from snapshotter.registry.reference import Reference, parse_reference

FORMS = "HOST/NAME:TAG, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or containerd:NAME"

_DOCKER = "docker://"
_OCI = "oci:"
_OCI_ARCHIVE = "oci-archive:"
_DOCKER_ARCHIVE = "docker-archive:"
_CONTAINERD = "containerd:"
# Names of other tools for places that we cannot use; taken as references they would be odd images of Docker Hub.
_FOREIGN = {
    "docker-daemon:": "save the image first (docker save -o FILE NAME) and name it docker-archive:FILE",
    "containers-storage:": "copy the image out first (podman save --format oci-archive -o FILE NAME) and name it "
    "oci-archive:FILE",
    "dir:": "copy the image first (skopeo copy dir:… oci:DIR:TAG) and name it oci:DIR:TAG",
    "tarball:": "import the files first and name the image that comes out of it",
    "ostree:": f"use {FORMS}",
    "sif:": f"use {FORMS}",
    "http://": "leave http:// out, and say --plain-http if the registry speaks no TLS",
    "https://": "leave https:// out: it is what registries are asked by",
}


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An OCI image layout in the directory `path`; `tag` is the image's name in it, None for its only image."""

    path: Path
    tag: str | None

    def __str__(self) -> str:
        return f"{_OCI}{self.path}" + (f":{self.tag}" if self.tag else "")

    def suffixed(self, suffix: str) -> Self:
        """See `with_suffix`."""
        if self.tag is None and suffix:
            raise _unnamed(self, suffix)
        return replace(self, tag=self.tag + suffix if self.tag is not None else None)


@dataclass(frozen=True, slots=True)
class OciArchiveLocation:
    """An OCI image layout in the tar `path`; `tag` is the image's name in it, None for its only image."""

    path: Path
    tag: str | None

    def __str__(self) -> str:
        return f"{_OCI_ARCHIVE}{self.path}" + (f":{self.tag}" if self.tag else "")

    def suffixed(self, suffix: str) -> Self:
        """See `with_suffix`."""
        if self.tag is None and suffix:
            raise _unnamed(self, suffix)
        return replace(self, tag=self.tag + suffix if self.tag is not None else None)


@dataclass(frozen=True, slots=True)
class DockerArchiveLocation:
    """What `docker save` wrote to the tar `path`; `tag` is the image's name in it, None for its only image."""

    path: Path
    tag: Reference | None

    def __str__(self) -> str:
        return f"{_DOCKER_ARCHIVE}{self.path}" + (f":{self.tag}" if self.tag else "")

    def suffixed(self, suffix: str) -> Self:
        """See `with_suffix`."""
        return replace(self, tag=_suffixed(self, self.tag, suffix)) if suffix else self


@dataclass(frozen=True, slots=True)
class RegistryLocation:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)

    def suffixed(self, suffix: str) -> Self:
        """See `with_suffix`."""
        return replace(self, reference=_suffixed(self, self.reference, suffix)) if suffix else self


@dataclass(frozen=True, slots=True)
class ContainerdLocation:
    """An image record of containerd: one that is called `name`, else one that has it as its normalised name."""

    name: str

    def __str__(self) -> str:
        return f"{_CONTAINERD}{self.name}"

    @property
    def reference(self) -> Reference | None:
        """The name as a reference, None if it is none: containerd takes any text."""
        try:
            return parse_reference(self.name)
        except ConfigError:
            return None

    def suffixed(self, suffix: str) -> Self:
        """See `with_suffix`."""
        if not suffix:
            return self
        reference = self.reference
        return replace(self, name=str(_suffixed(self, reference, suffix)) if reference else self.name + suffix)


Location = LayoutLocation | OciArchiveLocation | DockerArchiveLocation | RegistryLocation | ContainerdLocation


def parse_location(text: str) -> Location:
    """Return the place that `text` names.

    Raises:
        ConfigError: none that we know.
    """
    for prefix, kind in ((_OCI, LayoutLocation), (_OCI_ARCHIVE, OciArchiveLocation)):
        if text.startswith(prefix):
            path, tag = _path_and_name(text, prefix)
            return kind(path, tag)
    if text.startswith(_DOCKER_ARCHIVE):
        path, name = _path_and_name(text, _DOCKER_ARCHIVE)
        return DockerArchiveLocation(path, parse_reference(name) if name else None)
    if text.startswith(_CONTAINERD):
        name = text.removeprefix(_CONTAINERD)
        if not name or not name.isprintable() or name != name.strip():
            raise ConfigError(
                f"{text!r} names no image; write containerd:NAME, where NAME is what `ctr images ls` shows"
            )
        return ContainerdLocation(name)
    for prefix, instead in _FOREIGN.items():
        if text.startswith(prefix):
            raise ConfigError(f"{text!r}: {prefix} is not supported: {instead}")
    if text.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"{text!r} is a path: say what is there; use {FORMS}")
    return RegistryLocation(parse_reference(text.removeprefix(_DOCKER)))


def with_suffix(location: Location, suffix: str) -> Location:
    """The place of a second image beside that of `location`, whose tag has `suffix` at its end.

    Raises:
        ConfigError: the location has no tag.
    """
    return location.suffixed(suffix)


def _suffixed(location: object, reference: Reference | None, suffix: str) -> Reference:
    if reference is None or reference.tag is None or reference.digest is not None:
        raise _unnamed(location, suffix)
    # Parsed again: a tag has a greatest length.
    return parse_reference(f"{reference}{suffix}")


def _unnamed(location: object, suffix: str) -> ConfigError:
    return ConfigError(f"{location}: a second image, …{suffix}, is written beside this one: give it a tag")


def _path_and_name(text: str, prefix: str) -> tuple[Path, str | None]:
    """Path and name, which begins at the first colon as in skopeo's names."""
    path, _, name = text.removeprefix(prefix).partition(":")
    if not path:
        what = "DIRECTORY" if prefix == _OCI else "FILE"
        raise ConfigError(f"{text!r} names no {what.lower()}; write {prefix}{what} or {prefix}{what}:TAG")
    return Path(path), name or None
