"""Where a redirect may lead, who is at home, and what of an address may be shown."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import httpx
import trio

from snapshotter.errors import RegistryError

# Registry to storage is one hop; a front door before the registry makes it two or three.
HOPS_MAX = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
# How long the addresses of a name are believed, and how long its lookup may take.
_LOOKUP_LIFE_S = 60.0
_LOOKUP_TIMEOUT_S = 2.0

Resolve = Callable[[str], Awaitable[Sequence[str]]]


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    """Whether both have the same scheme, host and port: the border that credentials do not cross."""
    return _origin(one) == _origin(other)


def shown(url: httpx.URL) -> str:
    """The address without query and user: a signed query is as good as a password, and messages end in logs."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}{url.path}"


def is_http(url: httpx.URL) -> bool:
    """Whether `url` is an address that can be asked."""
    return url.scheme in _DEFAULT_PORTS and bool(url.host) and (url.port is None or 0 < url.port < 65536)


def next_hop(current: httpx.URL, location: str | None) -> httpx.URL:
    """The address that a redirect from `current` names.

    A registry behind a TLS proxy often calls itself http: the same host is then asked over https on.

    Raises:
        RegistryError: no Location, or one that is no http address.
    """
    if not location:
        raise RegistryError(f"{shown(current)} redirects without saying where (no Location)")
    try:
        url = current.join(location)
    except (httpx.InvalidURL, ValueError):
        raise RegistryError(f"{shown(current)} redirects to an address that cannot be read") from None
    if not is_http(url):
        raise RegistryError(f"{shown(current)} redirects to something that is no http or https address")
    if (current.scheme, url.scheme) == ("https", "http") and (current.host, current.port) == (url.host, url.port):
        url = url.copy_with(scheme="https")
    return url


# Where clouds answer with the credentials of the machine itself, beside link-local addresses: AWS over IPv6, Azure, Alibaba.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "168.63.129.16", "100.100.100.200")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses behind a translator, in their last four bytes (RFC 6052)."""


class AddressCheck:
    """Refuses link-local addresses, and the few others at which clouds keep the credentials of the machine itself.

    Private addresses are not refused: many sites have their registry's storage there.
    """

    def __init__(self, resolve: Resolve | None = None) -> None:
        """`resolve` maps a host name to addresses; by default the system's resolver."""
        self._resolve = resolve or _getaddrinfo
        self._seen: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def admit(self, url: httpx.URL, what: str) -> None:
        """Return if `url` may be followed. A name that does not resolve here may resolve at a proxy: it passes.

        Raises:
            RegistryError: it names, or resolves to, such an address.
        """
        for address in await self._addresses(url.host):
            if _is_machines_own(address):
                raise RegistryError(f"{what} leads to {url.host}, a link-local address or one like it: refused")

    async def _addresses(self, host: str) -> tuple[str, ...]:
        if _parsed(host) is not None:
            return (host,)
        now = trio.current_time()
        known = self._seen.get(host)
        if known is not None and known[0] > now:
            return known[1]
        addresses: tuple[str, ...] = ()
        with trio.move_on_after(_LOOKUP_TIMEOUT_S):
            try:
                addresses = tuple(await self._resolve(host))
            except (OSError, UnicodeError):
                addresses = ()
        self._seen = {name: entry for name, entry in self._seen.items() if entry[0] > now}
        self._seen[host] = (now + _LOOKUP_LIFE_S, addresses)
        return addresses


async def _getaddrinfo(host: str) -> Sequence[str]:
    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or _DEFAULT_PORTS.get(url.scheme)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address.partition("%")[0].removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_machines_own(address: str) -> bool:
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        behind_nat64 = ipaddress.IPv4Address(parsed.packed[-4:]) if parsed in _NAT64 else None
        parsed = parsed.ipv4_mapped or parsed.sixtofour or behind_nat64 or parsed
    return parsed is not None and (parsed.is_link_local or parsed in _METADATA)
