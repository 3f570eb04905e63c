"""httpx's exceptions in our words: what another try may change, what it will not, and what to do about it."""

import re
import ssl
from collections.abc import Mapping

import httpx

from snapshotter.errors import RegistryError, RegistryUntrusted
from snapshotter.registry.redirect import shown
from snapshotter.registry.retry import Transient
from snapshotter.registry.tls import Tls


def fault_of(error: httpx.HTTPError, url: httpx.URL, tls: Tls | None = None) -> Transient | RegistryError:
    """What an exception of httpx means to us: worth another try or not. `tls` is that of a request without an answer."""
    where = shown(url)
    trouble = _tls_trouble(error)
    if trouble is not None and (untrusted := _untrusted(trouble, url.host, tls or Tls())) is not None:
        return untrusted
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return RegistryError(f"{where} cannot be asked: {error}")
    if isinstance(error, httpx.TransportError):
        words = _WORDS.get(type(error), str(error) or type(error).__name__)
        if tls is not None and not tls.client and url.scheme == "https" and type(error) in _BROKEN:
            # It closes with our request unread, by which its alert may get lost on the way.
            words += f" before an answer, as where a client certificate is missing (`client` in {tls.file})"
        return Transient(f"{where}: {words}")
    return RegistryError(f"{where}: {str(error) or type(error).__name__}")


def _untrusted(trouble: ssl.SSLError, host: str, tls: Tls) -> RegistryUntrusted | None:
    """What a fault of TLS means, None for those that may be gone the next time."""
    file = tls.file
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return RegistryUntrusted(f"the certificate of {host} is not accepted: {_verification(trouble, file)}")
    reason = trouble.reason or ""
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}:
        return RegistryUntrusted(
            f"{host} does not speak TLS; if that is meant, list it in registry.plain_http (image tools: --plain-http), or write http:// in {file}"
        )
    if "ALERT" in reason and _CERTIFICATE_ALERT.search(reason):
        return RegistryUntrusted(
            f"{host} does not accept us ({reason.lower().replace('_', ' ')}): it asks for a client certificate; name one "
            f"that it knows as `client` in {file}"
        )
    if "HANDSHAKE_FAILURE" in reason or "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return RegistryUntrusted(
            f"{host} and this node have no TLS version and cipher in common, or it asks for a client certificate "
            f"({reason.lower().replace('_', ' ')}): name one as `client` in {file}, or ask its operator"
        )
    return None


_CERTIFICATE_ALERT = re.compile(r"CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED")


def _verification(trouble: ssl.SSLCertVerificationError, file: str) -> str:
    """X509_V_ERR numbers: 10 expired, 9 not yet valid, 62 and 64 another name, the rest an authority that nobody knows."""
    if trouble.verify_code == 10:
        return "it has expired; its operator must renew it (or this node's clock is wrong)"
    if trouble.verify_code == 9:
        return "it is not valid yet; is this node's clock right?"
    if trouble.verify_code in {62, 64}:
        return f"it is for another name ({trouble.verify_message}); use the name that it is for"
    return (
        f"its authority is not known ({trouble.verify_message}); name the authority's file as `ca` in {file}, or add it to "
        "the node's certificates"
    )


_BROKEN = frozenset({httpx.ReadError, httpx.RemoteProtocolError})
_WORDS: Mapping[type[Exception], str] = {
    httpx.ConnectTimeout: "no connection in time",
    httpx.ReadTimeout: "no answer in time",
    httpx.WriteTimeout: "nothing could be sent in time",
    httpx.ReadError: "the connection broke",
    httpx.WriteError: "the connection broke while sending",
}


def _tls_trouble(error: BaseException | None) -> ssl.SSLError | None:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError):
            return error
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None
