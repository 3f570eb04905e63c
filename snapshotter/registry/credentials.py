"""Who may ask: credentials of registries, from docker's config.json and the helpers that it names.

Source: the documentation of `docker login` and docker's config.json; `identitytoken` and `registrytoken` as containerd
and Docker write them; which of credHelpers, credsStore and auths counts is what docker's own command does.
"""

import base64
import binascii
import json
import logging
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from snapshotter.errors import ConfigError, FormatError
from snapshotter.registry.credential import Credential
from snapshotter.registry.credential_helpers import SERVERS_KEPT, CredentialHelpers
from snapshotter.registry.reference import DOCKER_HUB, canonical_host

_log = logging.getLogger(__name__)

DOCKER_HUB_SERVER = "https://index.docker.io/v1/"
"""What helpers call Docker Hub."""

MEND = "mend it, or log in again (`docker login` writes it)"

HELPERS_AT_ONCE = 8
"""Threads that may wait for one helper: those of reads and disks are others, and those of other helpers."""


@dataclass(frozen=True, slots=True)
class CredentialOrigin:
    """Where a credential comes from, without secrets. `source` is a file, a helper or "none"; `detail` says which entry."""

    source: str
    detail: str
    username: str = ""


class CredentialSource(Protocol):
    """Finds the credential for a registry. Asked when a registry demands one, not before."""

    async def lookup(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """The credential for `repository` at `host` (`docker.io` for Docker Hub's names), None for anonymous.

        `fresh`: what was given last was refused. Raises RegistryDenied: there ought to be one, and it cannot be had.
        """

    def problems(self) -> Mapping[str, str]:
        """What keeps credentials away, by server; from any thread."""

    def absence(self) -> str:
        """Where it was looked for, and what is wrong there: for whoever reads that there is none."""


@dataclass(frozen=True, slots=True)
class DockerFile:
    """A config.json: `auths` by canonical host, or host and path; helpers by canonical host, and how it is written there; the
    helper for all others.
    """

    auths: Mapping[str, Credential] = field(default_factory=dict)
    helpers: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""

    def helper(self, host: str) -> str:
        """The helper that is asked for `host`; empty if none is, or if the file says so for this host."""
        return self.helpers.get(canonical_host(host), self.store)

    def server(self, host: str) -> str:
        """What the helper for `host` is asked for: the server as the file writes it, for so the helper knows it."""
        if canonical_host(host) == DOCKER_HUB:
            return DOCKER_HUB_SERVER
        return self.servers.get(canonical_host(host), host)

    def entry(self, host: str, repository: str) -> str:
        """The longest key of `auths` that `host/repository` begins with, empty if none does."""
        key = f"{canonical_host(host)}/{repository}"
        while key and key not in self.auths:
            key = key.rpartition("/")[0]
        return key


class DockerConfig:
    """docker's config.json, read again whenever the file changes.

    A missing file means no credentials. A broken one is reported in the log, and the last good content counts on: an
    editor's slip must not stop jobs that read from public registries.
    """

    def __init__(
        self, path: Path | None = None, environ: Mapping[str, str] = os.environ, helper_timeout_s: float = 10.0
    ) -> None:
        """`path` is the file or its directory; without it `$DOCKER_CONFIG` or `~/.docker`."""
        if path is None:
            home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
            path = (
                Path(environ["DOCKER_CONFIG"]) if environ.get("DOCKER_CONFIG") else home / ".docker"
            ) / "config.json"
        self.path = path
        self._helpers = CredentialHelpers(environ, helper_timeout_s)
        # By helper: one that hangs for many servers must not hold up those that another knows.
        self._helper_threads: dict[str, trio.CapacityLimiter] = {}
        # Each is held while a helper is asked for a server: who comes meanwhile holds no thread.
        self._asking: dict[str, trio.Lock] = {}
        # Guards what follows: lookups read the file in threads.
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._file = DockerFile()
        self._complaint = ""

    async def lookup(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """What the helper for `host` has; without one, or where it has nothing, the entry for the longest prefix.

        Raises:
            RegistryDenied: the helper fails.
            RegistryUnreachable: it fails, but has worked before.
        """
        found = await trio.to_thread.run_sync(partial(self._read, anew=fresh))
        if name := found.helper(host):
            threads = self._helper_threads.setdefault(name, trio.CapacityLimiter(HELPERS_AT_ONCE))
            ask = partial(self._helpers.get, name, found.server(host), fresh=fresh)
            if len(self._asking) > SERVERS_KEPT:
                self._asking = {one: lock for one, lock in self._asking.items() if lock.locked()}
            async with self._asking.setdefault(host, trio.Lock()):
                credential = await trio.to_thread.run_sync(ask, limiter=threads, abandon_on_cancel=True)
            if credential is not None:
                return credential
        return found.auths.get(found.entry(host, repository))

    def find(self, host: str, repository: str, *, fresh: bool = False) -> Credential | None:
        """As `lookup`, blocking."""
        found = self._read(anew=fresh)
        name = found.helper(host)
        credential = self._helpers.get(name, found.server(host), fresh=fresh) if name else None
        return credential or found.auths.get(found.entry(host, repository))

    def describe(self, host: str, repository: str) -> CredentialOrigin:
        """Where the credential comes from; nothing of it is secret. Blocking.

        Raises:
            ConfigError: the file cannot be read, or is not what docker writes.
            RegistryDenied: the helper fails.
        """
        path = self._path()
        try:
            found = parse_docker_config(_content(path, path.stat()))
        except FileNotFoundError:
            return CredentialOrigin("none", f"there is no {path}")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; {MEND}") from None
        except FormatError as error:
            raise ConfigError(f"{path} is not a docker config.json: {error}; {MEND}") from None
        name = found.helper(host)
        if name:
            credential = self._helpers.get(name, found.server(host))
            if credential is not None:
                detail = f"for {found.server(host)}{_kind(credential)}"
                return CredentialOrigin(f"docker-credential-{name}", detail, credential.username)
        entry = found.entry(host, repository)
        if not entry:
            asked = f", and docker-credential-{name} has none" if name else ""
            return CredentialOrigin("none", f"{path} has no entry for {canonical_host(host)}{asked}")
        credential = found.auths[entry]
        return CredentialOrigin(str(path), f"its entry for {entry}{_kind(credential)}", credential.username)

    def absence(self) -> str:
        """Where credentials were looked for, or why they cannot be read. No secret is in it."""
        return self._complaint or f"{self.path} has none for it"

    def problems(self) -> Mapping[str, str]:
        """What helpers failed with last, by server; what is wrong with the file, by its path."""
        complaint = self._complaint
        return {**self._helpers.problems(), **({str(self.path): f"{complaint}; {MEND}"} if complaint else {})}

    def _path(self) -> Path:
        # Unlike Path.is_dir it raises nothing, whatever the file system says: reading the file will say the same.
        return self.path / "config.json" if os.path.isdir(self.path) else self.path

    def _read(self, *, anew: bool = False) -> DockerFile:
        """What the file says; `anew` also if it does not look changed: it may be younger than a file system's clock can tell."""
        path = self._path()
        with self._lock:
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                if anew or stamp != self._stamp:
                    text = _content(path, status)
                    self._stamp = stamp
                    self._file = parse_docker_config(text)
                    self._complaint = ""
            except FileNotFoundError:
                self._stamp, self._file, self._complaint = None, DockerFile(), ""
            except OSError as error:
                self._stamp = None
                self._complain(f"cannot read {path}: {error.strerror}")
            except FormatError as error:
                self._complain(f"{path} is not a docker config.json ({error}); what was read before stays")
            return self._file

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            _log.warning("credentials: %s", complaint)
        self._complaint = complaint


def _content(path: Path, status: os.stat_result) -> bytes:
    """What a file holds. A pipe would keep its reader, and with it everybody who asks, until somebody writes."""
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("not a file, but a device or a pipe")
    return path.read_bytes()


def _kind(credential: Credential) -> str:
    """What is said of a credential that is no password."""
    if credential.refresh_token:
        return " (an identity token)"
    return " (a registry token)" if credential.registry_token else ""


def parse_docker_config(text: bytes) -> DockerFile:
    """Return what a config.json says of credentials; what else is in it is docker's own business.

    Raises:
        FormatError: not the JSON that docker writes. The message has no part of the content, which is secret.
    """
    try:
        document = json.loads(text)
        # JSON can write halves of characters. An error from later on would show the secret in which it found one.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise FormatError("not JSON") from None
    if not isinstance(document, dict):
        raise FormatError("not a JSON object")
    found = {}
    # Of several ways to write a server docker's own comes last, and counts.
    entries = sorted(_object(document, "auths").items(), key=lambda one: one[0] in {_key(one[0]), DOCKER_HUB_SERVER})
    for server, entry in entries:
        if not isinstance(entry, dict):
            raise FormatError(f"the entry of {server} is not an object")
        if (credential := _credential(entry, server)) is not None:
            found[_key(server)] = credential
    helpers = _object(document, "credHelpers")
    store = document.get("credsStore") or ""
    if not isinstance(store, str) or not all(isinstance(name, str) for name in helpers.values()):
        raise FormatError("credsStore, or a value of credHelpers, is not the name of a helper")
    by_host = {_key(server): name for server, name in helpers.items()}
    return DockerFile(found, by_host, {_key(server): server for server in helpers}, store)


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError(f"{name} is not an object")
    return value


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
