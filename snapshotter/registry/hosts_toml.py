"""containerd's hosts.toml: text to values. Pure.

The file is containerd's, so what containerd takes is taken: an unknown key is worth a warning, not a failed pull. What
containerd refuses is refused, and file and line are named.

Source: containerd's docs/hosts.md, and core/remotes/docker/config (1.6 to 2.2), which says what the document leaves open.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from snapshotter.errors import HostsError

CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
FILE_MAX = 256 << 10

_KEYS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
_LINE = re.compile(r"at line (\d+)")
# Go writes the micro sign, and reads the Greek letter that looks like it too.
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(_UNITS_S)})", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_DURATION_LENGTH_MAX = 100
_DAY_S = 86400.0
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# Of the connection, not of the site: a request with two of one of these, or a wrong one, is no request.
_NOT_SET = frozenset({"host", "connection", "content-length", "transfer-encoding", "range"})
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?", re.ASCII)
_URL_MAX = 2000
# What is looked at of a line for its key; a longer one has its key in front too.
_LINE_MAX = 1000
_EQUALS_MAX = 8


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One server. `base` and `prefix` are empty for the registry itself, where the file does not say what it is.

    `client` are pairs of certificate and key; header values that stand in a list are joined as HTTP joins them.
    """

    base: str = ""
    prefix: str = ""
    capabilities: frozenset[str] = CAPABILITIES
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path], ...] = ()
    skip_verify: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    dial_timeout_s: float | None = None

    @property
    def has_tls(self) -> bool:
        """Whether the file says anything of TLS for it."""
        return bool(self.ca or self.client or self.skip_verify)


@dataclass(frozen=True, slots=True)
class HostsFile:
    """The servers of one registry in the order in which they are asked, the registry itself last; and what was odd."""

    hosts: tuple[HostEntry, ...]
    server: HostEntry
    warnings: tuple[str, ...] = ()


def parse_hosts(text: str, path: Path) -> HostsFile:
    """Return what the file `path` with this text says; relative paths in it are relative to the file.

    Raises:
        HostsError: not TOML, or a value that containerd would not take; file and line are named.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: digits beyond Python's limit for integers; RecursionError: a thousand brackets.
        at = _LINE.search(str(error))
        line = int(at[1]) if at else max(1, len(text.splitlines()))
        raise HostsError(f"{path}:{line}: not valid TOML: {error}; containerd does not take it either") from None
    return _Reader(text, path).file(tables)


class _Reader:
    """One file; it knows where each key stands."""

    def __init__(self, text: str, path: Path) -> None:
        self._text = text
        self._path = path
        self._lines: Mapping[tuple[str, ...], int] | None = None
        self._warnings: list[str] = []

    def file(self, tables: Mapping[str, Any]) -> HostsFile:
        hosts = tables.get("host", {})
        if not isinstance(hosts, dict):
            raise self._error(("host",), 'host must be tables: write [host."https://mirror.example.org"]')
        entries = []
        for url, table in hosts.items():
            where = ("host", url)
            if not isinstance(table, dict):
                raise self._error(where, f'must be a table: write [host."{url}"]')
            if not url:
                raise self._error(where, "names no server")
            self._check_keys(table, where, _KEYS)
            entries.append(self._entry(url, table, where, where))
        self._check_keys(tables, (), ("server", "host", *_KEYS))
        server = tables.get("server", "")
        if not isinstance(server, str):
            raise self._error(
                ("server",), 'must be the address of the registry, such as "https://registry.example.org"'
            )
        upstream = self._entry(server, tables, (), ("server",))
        return HostsFile(tuple(entries), upstream, tuple(self._warnings))

    def _entry(self, url: str, table: Mapping[str, Any], where: tuple[str, ...], named: tuple[str, ...]) -> HostEntry:
        override = self._bool(table, where, "override_path")
        base, prefix = self._address(url, named, override=override) if url else ("", "")
        return HostEntry(
            base,
            prefix,
            self._capabilities(table, where),
            tuple(self._paths(table, where, "ca")),
            tuple(self._client(table, where)),
            self._bool(table, where, "skip_verify"),
            self._headers(table, where),
            self._duration(table, where),
        )

    def _address(self, url: str, where: tuple[str, ...], *, override: bool) -> tuple[str, str]:
        """Scheme and host; and the path below which the API is."""
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            usable = len(url) <= _URL_MAX and _is_server(parts)
        except ValueError:
            usable = False
            parts = SplitResult("", "", "", "", "")
        if not usable:
            # What is before an @ may be a password.
            shown = url.rpartition("@")[2][:80]
            login = "; a login is not written here, but stored with `docker login`" if "@" in url else ""
            raise self._error(
                where, f"{shown!r} is not the address of a server, such as https://mirror.example.org:5000{login}"
            )
        path = re.sub(r"/+", "/", parts.path).rstrip("/")
        if not override and not path.endswith("/v2"):
            path += "/v2"
        return f"{parts.scheme}://{parts.netloc}", path

    def _capabilities(self, table: Mapping[str, Any], where: tuple[str, ...]) -> frozenset[str]:
        value = table.get("capabilities")
        if value is None or value == []:
            return CAPABILITIES
        right = 'must be a list of pull, resolve, push and referrers, such as ["pull", "resolve"]'
        if not isinstance(value, list):
            raise self._error((*where, "capabilities"), right)
        names = [name.lower() if isinstance(name, str) else "" for name in value]
        for name, written in zip(names, value, strict=True):
            if name not in CAPABILITIES:
                near = difflib.get_close_matches(name, CAPABILITIES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise self._error((*where, "capabilities"), f"{right}, not {str(written)[:40]!r}{hint}")
        return frozenset(names)

    def _paths(self, table: Mapping[str, Any], where: tuple[str, ...], key: str) -> Iterator[Path]:
        value = table.get(key, [])
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str) or not item or "\0" in item:
                raise self._error((*where, key), "must be the path of a file, or a list of paths")
            yield self._resolved(item)

    def _client(self, table: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
        value = table.get("client", [])
        for item in value if isinstance(value, list) else [value]:
            pair = item if isinstance(item, list) else [item, ""]
            right = len(pair) == 2 and all(isinstance(name, str) and "\0" not in name for name in pair) and pair[0]
            if not right:
                raise self._error(
                    (*where, "client"),
                    'must be a file with certificate and key, a list of such, or a list of pairs [["client.cert", "client.key"]]',
                )
            certificate = self._resolved(pair[0])
            yield certificate, self._resolved(pair[1]) if pair[1] else certificate

    def _resolved(self, name: str) -> Path:
        return self._path.parent / name

    def _headers(self, table: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, str]:
        value = table.get("header", {})
        if not isinstance(value, dict):
            raise self._error((*where, "header"), 'must be a table of names and values: header = { x-site = "cern" }')
        headers = {}
        for name, content in value.items():
            values = content if isinstance(content, list) else [content]
            if not _HEADER_NAME.fullmatch(name) or not all(
                isinstance(one, str) and _HEADER_VALUE.fullmatch(one) for one in values
            ):
                # The value may be a secret: it is not shown.
                raise self._error(
                    (*where, "header", name), "must be a text, or a list of texts, that a header can carry (ASCII)"
                )
            if name.lower() in _NOT_SET:
                place = self._place((*where, "header", name))
                self._warnings.append(f"{place}: header {name} is set for each request, and not by this file")
                continue
            headers[name.lower()] = ", ".join(one.strip() for one in values)
        return headers

    def _bool(self, table: Mapping[str, Any], where: tuple[str, ...], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._error((*where, key), "must be true or false")
        return value

    def _duration(self, table: Mapping[str, Any], where: tuple[str, ...]) -> float | None:
        value = table.get("dial_timeout")
        if value is None:
            return None
        seconds = 0.0
        if isinstance(value, str) and len(value) <= _DURATION_LENGTH_MAX and _DURATION.fullmatch(value):
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(value))
        if seconds <= 0:
            raise self._error((*where, "dial_timeout"), 'must be a time such as "3s", "500ms" or "1m30s"')
        return min(seconds, _DAY_S)

    def _check_keys(self, table: Mapping[str, Any], where: tuple[str, ...], known: tuple[str, ...]) -> None:
        for key in table:
            if key in known:
                continue
            place = self._place((*where, key))
            if key == "rewrite":
                self._warnings.append(f"{place}: rewrite is known to k3s's own containerd only, and not followed here")
                continue
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            self._warnings.append(f"{place}: {key} is no key of hosts.toml, and counts for nothing; {hint}")

    def _error(self, key: tuple[str, ...], words: str) -> HostsError:
        name = key[-1] if key and key[0] != "host" else ".".join(key[2:])
        return HostsError(f"{self._place(key)}: {name + ' ' if name else ''}{words}")

    def _place(self, key: tuple[str, ...]) -> str:
        """File and line of a key; of the table it is in, where the key's own line is not found."""
        if self._lines is None:
            self._lines = _key_lines(self._text)
        while key and key not in self._lines:
            key = key[:-1]
        return f"{self._path}:{self._lines.get(key, 1)}"


def _is_server(parts: SplitResult) -> bool:
    """Whether these are an address without user, query and the like. Raises ValueError for a port or IPv6 address that is none."""
    if parts.netloc.startswith("["):
        ipaddress.IPv6Address(parts.hostname or "")
    return (
        parts.scheme in {"http", "https"}
        and _HOST.fullmatch(parts.netloc) is not None
        and (parts.port is None or parts.port > 0)
        and not (parts.query or parts.fragment)
        and parts.path.isprintable()
        and " " not in parts.path
    )


def _key_lines(text: str) -> Mapping[tuple[str, ...], int]:
    """The line of each key and table, as far as lines show them: tomllib does not say where it read what."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("[") and len(stripped) <= _LINE_MAX:
            table = _path_in(stripped) or table
            path = table
        else:
            path = table + _key_before_equals(stripped)
        for length in range(1, len(path) + 1):
            found.setdefault(path[:length], number)
    return found


def _key_before_equals(line: str) -> tuple[str, ...]:
    at = line.find("=", 0, _LINE_MAX)
    for _ in range(_EQUALS_MAX):  # a quoted key may have some
        if at <= 0:
            break
        if path := _path_in(f"{line[:at]}= 0"):
            return path
        at = line.find("=", at + 1, _LINE_MAX)
    return ()


def _path_in(line: str) -> tuple[str, ...]:
    """The keys that a line of TOML by itself names, outermost first; none if it is not TOML by itself."""
    try:
        tables: Any = tomllib.loads(line)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return ()
    path: list[str] = []
    while isinstance(tables, dict) and len(tables) == 1:
        name, tables = next(iter(tables.items()))
        path.append(name)
    return tuple(path)
