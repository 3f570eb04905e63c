"""Image references as containerd reads them: text to a checked value and back to its normalised form. Pure.

Source: the grammar in the documentation of distribution's package `reference`, which containerd, CRI and Docker share;
containerd adds that Docker Hub answers at another name than the one written in references.
"""

import re
from dataclasses import dataclass

from snapshotter.errors import ConfigError, FormatError

DOCKER_HUB = "docker.io"
DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_API})

# Host and repository together; longer names are refused by every registry.
NAME_MAX = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: registry host (with port), repository, and a tag or a digest or both.

    With both, the digest says what is meant and the tag is only kept for the reader.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """The normalised form, which `parse_reference` reads back to an equal value."""
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    @property
    def api_host(self) -> str:
        """The host whose API serves this image."""
        return DOCKER_HUB_API if self.host == DOCKER_HUB else self.host

    @property
    def selector(self) -> str:
        """What the manifest is asked by: the digest if there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def with_digest(self, digest: str) -> "Reference":
        """The same image, pinned to `digest`."""
        return Reference(self.host, self.repository, self.tag, checked_digest(digest))


def parse_reference(text: str) -> Reference:
    """Return the image that `text` names, with Docker Hub's abbreviations filled in.

    Raises:
        ConfigError: not a reference; the message says which part is wrong.
    """
    if _BARE_ID.fullmatch(text):
        raise ConfigError(f"{_shown(text)} is an image ID, not a reference: write host/name:tag or name@sha256:…")
    rest, at, digest = text.partition("@")
    if at and not _SHA256.fullmatch(digest):
        raise ConfigError(f"reference {_shown(text)}: the digest must be sha256: and 64 lower-case hexadecimal digits")
    tag: str | None = None
    if ":" in rest.rpartition("/")[2]:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise ConfigError(
                f"reference {_shown(text)}: a tag has letters, digits, '_', '.', '-', at most 128, "
                "and begins with a letter, a digit or '_'"
            )
    host, repository = _split_host(rest)
    _check_host(host, text)
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"reference {_shown(text)}: the repository name {_shown(repository)} must be lower-case letters and digits, "
            "separated by single '.', '_', '__', '-' or '/'"
        )
    if len(host) + 1 + len(repository) > NAME_MAX:
        raise ConfigError(
            f"reference {_shown(text)}: host and repository together are longer than {NAME_MAX} characters"
        )
    return Reference(host, repository, tag if tag or digest else "latest", digest or None)


def canonical_host(host: str) -> str:
    """One name for the several of Docker Hub, lower case for all: the key of credentials and configuration."""
    lowered = host.lower()
    return DOCKER_HUB if lowered in _DOCKER_HUB_NAMES else lowered


def checked_digest(text: str) -> str:
    """Return `text` if it is a sha256 digest in canonical form.

    Raises:
        FormatError: another algorithm, another length, or upper-case digits.
    """
    if not _SHA256.fullmatch(text):
        raise FormatError(f"{_shown(text)} is not a sha256 digest (sha256: and 64 lower-case hexadecimal digits)")
    return text


def _split_host(name: str) -> tuple[str, str]:
    """Host and repository; a first part without '.', ':' or a capital, other than localhost, is Docker Hub's."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        host, repository = first, rest
    else:
        host, repository = DOCKER_HUB, name
    if host == "index.docker.io":
        host = DOCKER_HUB
    if host == DOCKER_HUB and repository and "/" not in repository:
        repository = f"library/{repository}"
    return host, repository


def _check_host(host: str, text: str) -> None:
    match = _HOST.fullmatch(host)
    if match is None:
        raise ConfigError(f"reference {_shown(text)}: {_shown(host)} is not a host name with an optional port")
    port = match["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise ConfigError(f"reference {_shown(text)}: port {port} is not between 1 and 65535")


def _shown(text: str) -> str:
    """`text` quoted, and cut where a message would drown in it."""
    return repr(text if len(text) <= 120 else text[:117] + "…")
