"""Where registries are reached, from containerd's certs.d directories; read again when something in them has changed.

Source: containerd's docs/hosts.md; core/remotes/docker/config (1.6 to 2.2): directories by host, hosts.toml, docker's files.
"""

import logging
import math
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snapshotter.errors import HostsError
from snapshotter.registry.hosts import USUAL, DirectHosts, Endpoint, split_port
from snapshotter.registry.hosts_toml import FILE_MAX, HostEntry, HostsFile, parse_hosts
from snapshotter.registry.reference import canonical_host
from snapshotter.registry.tls import Stamp, Tls, stamp_of

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""A request that comes so soon after the last look at the files believes it."""

HOSTS_KEPT = 1000
"""Registries whose servers are remembered."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the files said, when they had this stamp; `files` are those that it stands for."""

    files: tuple[Path, ...]
    stamp: Stamp
    endpoints: tuple[Endpoint, ...]


@dataclass(slots=True)
class _Known:
    """What is known of one registry: what was read last, when the files were looked at, and what is wrong with them now."""

    reading: _Reading | None = None
    looked: float = -math.inf
    fault: str = ""


class CertsDirectories:
    """Used on one thread. A look at the files is some calls of stat, at most once a second for each registry."""

    def __init__(
        self, roots: Sequence[Path], plain_http: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`roots` are searched in order; a registry without a directory in them is its own only server."""
        self._roots = tuple(roots)
        self._direct = DirectHosts(plain_http)
        self._clock = clock
        self._known: dict[str, _Known] = {}
        # Of each file the text whose warnings were told last: one `_default` serves many registries.
        self._told: dict[Path, str] = {}

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """The servers of a registry. A file that breaks while it is in use is told once, and what it said before goes on.

        Raises:
            HostsError: it was never right; file and line are named.
        """
        now = self._clock()
        known = self._known.get(host)
        if known is None or now - known.looked >= CHECK_EVERY_S:
            known = self._known.pop(host, None) or _Known()
            self._known[host] = known
            if len(self._known) > HOSTS_KEPT:
                del self._known[next(iter(self._known))]
            known.looked = now
            self._look(host, known)
        if known.reading is None:
            raise HostsError(known.fault)
        return known.reading.endpoints

    def directory(self, host: str) -> Path | None:
        """The directory that says where `host` is reached, None if there is none. Raises HostsError: it cannot be told."""
        return next((path for root in self._roots for path in _candidates(root, host) if _is_directory(path)), None)

    def _look(self, host: str, known: _Known) -> None:
        before = known.reading
        try:
            directory = self.directory(host)
            files = () if directory is None else (directory, directory / "hosts.toml")
            changed = before is None or before.files[:2] != files or stamp_of(before.files) != before.stamp
            if changed:
                known.reading = self._read(host, directory, files)
        except HostsError as error:
            if known.fault != str(error):
                goes_on = "; what was read before goes on" if before is not None else ""
                log.warning("registry %s: %s%s", host, error, goes_on)
            known.fault = str(error)
        else:
            known.fault = ""

    def _read(self, host: str, directory: Path | None, files: tuple[Path, ...]) -> _Reading:
        if directory is None:
            return _Reading(files, (), self._direct.endpoints(host))
        path = directory / "hosts.toml"
        # Before anything is read: a change meanwhile is then seen at the next look.
        stamp = stamp_of(files)
        text = _text_of(path)
        if text.strip():
            read = parse_hosts(text, path)
            self._warn(path, text, read.warnings)
            told_in = path
        else:
            read = HostsFile((), _docker_style(directory))
            told_in = None
        named = tuple(path for entry in (*read.hosts, read.server) for path in _certificates(entry))
        stamp += stamp_of(named)
        endpoints = tuple(one for entry in read.hosts for one in _endpoints(entry, host, told_in))
        endpoints += tuple(self._server(read.server, host, told_in))
        for one in endpoints:
            one.tls.check()  # what is wrong with a certificate is said now, not at the first request
        return _Reading(files + named, stamp, endpoints)

    def _warn(self, path: Path, text: str, warnings: Sequence[str]) -> None:
        if self._told.get(path, "") != text and warnings:
            for warning in warnings:
                log.warning("%s", warning)
            self._told[path] = text

    def _server(self, entry: HostEntry, host: str, told_in: Path | None) -> Iterator[Endpoint]:
        """The registry itself: where the file says, else where it is without a file."""
        (usual,) = self._direct.endpoints(host)
        if not entry.base:
            entry = replace(entry, base=usual.base, prefix=usual.prefix)
        for one in _endpoints(entry, host, told_in):
            yield replace(one, tls=usual.tls) if one.base == usual.base and one.tls == USUAL else one


def _candidates(root: Path, host: str) -> Iterator[Path]:
    """The directories that may speak for `host`, the one that counts first."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        yield root / f"{name}_{port}_"
    yield root / host
    yield root / "_default"


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostsError(f"{path} cannot be looked at: {error.strerror}") from None


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise HostsError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > FILE_MAX:
        raise HostsError(f"{path} has {len(data)} bytes; a hosts.toml has at most {FILE_MAX}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HostsError(f"{path}:{line}: not UTF-8; save it as UTF-8") from None


def _docker_style(directory: Path) -> HostEntry:
    """The layout of docker: `*.crt` are authorities, `*.cert` client certificates beside `*.key` of the same name."""
    try:
        names = sorted(directory.iterdir())
    except OSError as error:
        raise HostsError(f"{directory} cannot be read: {error.strerror}") from None
    pairs = []
    for path in names:
        if path.suffix == ".cert":
            key = path.with_suffix(".key")
            if not key.exists():
                raise HostsError(f"{path} has no key beside it: {key.name} is missing")
            pairs.append((path, key))
    return HostEntry(ca=tuple(path for path in names if path.suffix == ".crt"), client=tuple(pairs))


def _certificates(entry: HostEntry) -> tuple[Path, ...]:
    return (*entry.ca, *(path for pair in entry.client for path in pair))


def _endpoints(entry: HostEntry, host: str, told_in: Path | None) -> Iterator[Endpoint]:
    """An entry's servers: two where http is written with certificates, of which https is tried first, as containerd does."""
    registry = canonical_host(host)
    server = entry.base.partition("://")[2]
    plain = entry.base.startswith("http://")
    tls = Tls(told_in=told_in)
    if entry.has_tls:
        tls = Tls(entry.ca, entry.client, entry.skip_verify, stamp_of(_certificates(entry)), told_in)
    made = Endpoint(
        entry.base,
        registry,
        entry.prefix,
        entry.headers,
        None if canonical_host(server) == registry else host,
        entry.capabilities,
        USUAL if plain else tls,
        entry.dial_timeout_s,
    )
    if plain and entry.has_tls and split_port(server)[1] != 80:
        yield replace(made, base=f"https://{server}", tls=tls)
    yield made
