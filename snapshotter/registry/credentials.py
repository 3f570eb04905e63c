"""Who may ask: credentials of registries, from docker's config.json.

Source: the documentation of `docker login` and docker's config.json; `identitytoken` and `registrytoken` as containerd
and Docker write them.
"""

import base64
import binascii
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from snapshotter.errors import FormatError
from snapshotter.registry.reference import canonical_host

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Credential:
    """What proves who we are; empty strings where there is nothing. Its repr shows no secret.

    `refresh_token` (docker's identitytoken) is exchanged for access tokens; `registry_token` is an access token itself.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


class CredentialSource(Protocol):
    """Finds the credential for a registry. Asked when a registry demands one, not before."""

    async def lookup(self, host: str, repository: str) -> Credential | None:
        """The credential for `repository` at `host` (`docker.io` for Docker Hub's names), None for anonymous."""


class DockerConfig:
    """docker's config.json, read again whenever the file changes.

    A missing file means no credentials. A broken one is reported in the log, and the last good content counts on: an
    editor's slip must not stop jobs that read from public registries.
    """

    def __init__(self, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """`path` is the file or its directory; without it `$DOCKER_CONFIG` or `~/.docker`."""
        if path is None:
            path = Path(environ["DOCKER_CONFIG"]) if environ.get("DOCKER_CONFIG") else Path.home() / ".docker"
            path = path / "config.json"
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._auths: Mapping[str, Credential] = {}

    async def lookup(self, host: str, repository: str) -> Credential | None:
        """The entry for the longest prefix of `host/repository` that has one."""
        return await trio.to_thread.run_sync(self.find, host, repository)

    def find(self, host: str, repository: str) -> Credential | None:
        """As `lookup`, blocking."""
        self._refresh()
        key = f"{canonical_host(host)}/{repository}"
        while key:
            if (found := self._auths.get(key)) is not None:
                return found
            key = key.rpartition("/")[0]
        return None

    def _refresh(self) -> None:
        path = self.path / "config.json" if self.path.is_dir() else self.path
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            text = path.read_bytes()
        except FileNotFoundError:
            self._stamp, self._auths = None, {}
            return
        except OSError as error:
            _log.warning("credentials: cannot read %s: %s", path, error.strerror)
            return
        self._stamp = stamp
        try:
            self._auths = parse_docker_config(text)
        except FormatError as error:
            _log.warning("credentials: %s is not a docker config.json (%s); what was read before stays", path, error)


def parse_docker_config(text: bytes) -> dict[str, Credential]:
    """Return the credentials of `auths` by canonical host, or host and path.

    Raises:
        FormatError: not the JSON that docker writes. The message has no part of the content, which is secret.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError("not JSON") from None
    auths = document.get("auths") if isinstance(document, dict) else None
    auths = {} if auths is None else auths
    if not isinstance(document, dict) or not isinstance(auths, dict):
        raise FormatError("no object with an object named auths")
    found = {}
    for server, entry in auths.items():
        if not isinstance(entry, dict):
            raise FormatError(f"the entry of {server} is not an object")
        if (credential := _credential(entry, server)) is not None:
            found[_key(server)] = credential
    return found


def _key(server: str) -> str:
    """`https://index.docker.io/v1/` → `docker.io`; `https://quay.io/team` → `quay.io/team`."""
    rest = server.partition("://")[2] or server
    host, _, path = rest.partition("/")
    path = path.strip("/")
    return canonical_host(host) + (f"/{path}" if path and path not in {"v1", "v2"} else "")


def _credential(entry: Mapping[str, object], server: str) -> Credential | None:
    values = {}
    for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
        value = entry.get(name) or ""
        if not isinstance(value, str):
            raise FormatError(f"{name} of {server} is not a string")
        values[name] = value
    username, password = values["username"], values["password"]
    if values["auth"]:
        try:
            plain = base64.b64decode(values["auth"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise FormatError(f"auth of {server} is not base64") from None
        username, _, password = plain.partition(":")
        # Old versions of docker pad the decoded text with NULs.
        password = password.rstrip("\0")
    if not (password or values["identitytoken"] or values["registrytoken"]):
        return None
    return Credential(username, password, values["identitytoken"], values["registrytoken"])
