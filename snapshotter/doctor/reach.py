"""One knock at a registry's door: whether its name has an address, whether it answers, and what time it is there.

Certificates are not looked at here: a clock that is wrong makes every one of them wrong, and the clock is what the answer
tells. No credential is sent. Trust is tried by the request for the manifest, which goes the daemon's own way.
"""

import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import httpx

from snapshotter.errors import RegistryUnreachable
from snapshotter.registry.hosts import Endpoint, split_port

PROXY_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")


@dataclass(frozen=True, slots=True)
class Knock:
    """An answer: `date` is the server's clock in seconds since 1970, None if it does not say; `took_s` the way there and back."""

    status: int
    date: float | None
    took_s: float


def knock(endpoint: Endpoint, timeout_s: float) -> Knock:
    """Ask the root of a registry's API, following nothing; with the client certificate that is configured for it.

    Raises:
        RegistryUnreachable: no answer.
        HostsError: a certificate that is configured cannot be used.
    """
    url = f"{endpoint.base}{endpoint.prefix}/"
    context = endpoint.tls.context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # see above
    began = time.monotonic()
    try:
        answer = httpx.get(url, timeout=timeout_s, verify=context, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryUnreachable(f"{endpoint.host} does not answer: {_words(error)}") from None
    return Knock(answer.status_code, _date(answer.headers.get("date")), time.monotonic() - began)


def addresses(name: str) -> list[str]:
    """The addresses of a host name, each once; blocks as long as the system's resolver does.

    Raises:
        RegistryUnreachable: it has none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RegistryUnreachable(
            f"the name {name} has no address: {getattr(error, 'strerror', None) or error}"
        ) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def proxy_for(endpoint: Endpoint) -> str | None:
    """The proxy of this process's environment through which the endpoint is asked, without its user and password."""
    proxies = getproxies_environment()
    if proxy_bypass(split_port(endpoint.host)[0], proxies):
        return None
    chosen = proxies.get("https" if endpoint.secure else "http") or proxies.get("all")
    return without_secret(chosen) if chosen else None


def proxy_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that choose proxies, by lower-case name, which an environment may write either way; none without a proxy."""
    found = {name: environ.get(name) or environ.get(name.upper()) or "" for name in PROXY_NAMES}
    chosen = any(value for name, value in found.items() if name != "no_proxy")
    return {name: value for name, value in found.items() if value and chosen}


def without_secret(proxy: str) -> str:
    """A proxy's address without user and password, and without a path."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _date(header: str | None) -> float | None:
    """Source: RFC 9110 section 6.6.1."""
    try:
        then = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return (then if then.tzinfo is not None else then.replace(tzinfo=UTC)).timestamp()


def _words(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time (a firewall, or a wrong address)"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy says {error}"
    return _ERRNO.sub("", str(error)) or type(error).__name__
