"""Which servers answer for a registry host, and how they are addressed. Pure.

The resolver that is here knows no configuration files: one host, https, or http where that is usual or configured. The one
that does is in `certs_d.py`.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from snapshotter.registry.hosts_toml import CAPABILITIES
from snapshotter.registry.reference import DOCKER_HUB, DOCKER_HUB_API, canonical_host
from snapshotter.registry.tls import Tls

USUAL = Tls()
UNVERIFIED = Tls(skip_verify=True)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of a registry's API.

    `base` is scheme, host and port without a slash at the end; `prefix` begins with one, or is empty. `headers` go to this
    server only, never to where it redirects. `namespace` is the registry that a mirror is asked to stand for; the
    registry's own server has none. `connect_timeout_s` outranks the configuration's.
    """

    base: str
    registry: str
    prefix: str = "/v2"
    headers: Mapping[str, str] = field(default_factory=dict)
    namespace: str | None = None
    capabilities: frozenset[str] = CAPABILITIES
    tls: Tls = USUAL
    connect_timeout_s: float | None = None

    @property
    def host(self) -> str:
        """Host and port."""
        return self.base.partition("://")[2]

    @property
    def credentials_host(self) -> str:
        """Under which name credentials for it are kept: a mirror gets its own, never those of the registry."""
        return canonical_host(self.host) if self.namespace else self.registry

    @property
    def secure(self) -> bool:
        """Whether what is sent to it is encrypted."""
        return self.base.startswith("https://")

    def url(self, repository: str, rest: str) -> str:
        """The address of `rest` (such as `blobs/sha256:…`) in `repository`."""
        return f"{self.base}{self.prefix}/{repository}/{rest}"


class HostsResolver(Protocol):
    """Says where a registry is reached. Asked before each request, so that a changed configuration counts at once."""

    def endpoints(self, host: str) -> Sequence[Endpoint]:
        """The servers that answer for the registry `host` of a reference, best first, at least one.

        Raises HostsError: what says so is wrong.
        """


class DirectHosts:
    """Every registry is its own and only server."""

    def __init__(self, plain_http: Sequence[str] = ()) -> None:
        """`plain_http` lists registries without TLS as `host:port`, or `host` for all of its ports."""
        self._plain_http = frozenset(canonical_host(entry) for entry in plain_http)

    def endpoints(self, host: str) -> tuple[Endpoint, ...]:
        """One endpoint: http for loopback names (but port 443) and for what the configuration lists, else https.

        TLS of this machine itself is not verified, as containerd does not.
        """
        api_host = DOCKER_HUB_API if host == DOCKER_HUB else host
        name, port = split_port(api_host.lower())
        listed = not self._plain_http.isdisjoint({canonical_host(host), name})
        local = is_loopback(name)
        plain = listed or (local and port != 443)
        tls = UNVERIFIED if local and not plain else USUAL
        return (Endpoint(f"{'http' if plain else 'https'}://{api_host}", canonical_host(host), tls=tls),)


def split_port(host: str) -> tuple[str, int | None]:
    """Host name (an IPv6 address without its brackets) and port, None where none is written."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name, port = host, ""
    return name.removeprefix("[").removesuffix("]"), int(port) if port else None


def is_loopback(name: str) -> bool:
    """Whether `name` is this machine for certain: `localhost` or a loopback address."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
