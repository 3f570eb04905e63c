"""Certificate authorities of a test's own, and TLS servers with what is wrong with servers in the field."""

import datetime as dt
import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


class Authority:
    """Issues certificates, and writes what hosts.toml names."""

    def __init__(self, ca: trustme.CA | None = None) -> None:
        self._ca = ca or trustme.CA()
        self._me = self._ca.issue_cert("node@site.test")

    def subordinate(self) -> "Authority":
        """An authority that this one vouches for; its servers send its certificate too."""
        return Authority(self._ca.create_child_ca())

    def write_ca(self, path: Path) -> Path:
        """The authority's own certificate."""
        self._ca.cert_pem.write_to_path(path)
        return path

    def write_client(self, certificate: Path, key: Path) -> None:
        """A client certificate and its key."""
        self._me.cert_chain_pems[0].write_to_path(certificate)
        self._me.private_key_pem.write_to_path(key)

    def write_both(self, path: Path) -> Path:
        """Certificate and key in one file."""
        self._me.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def write_encrypted_key(self, path: Path) -> None:
        """The client's key, with a password."""
        key = load_pem_private_key(self._me.private_key_pem.bytes(), None)
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret"))
        )

    def server(
        self, name: str = "127.0.0.1", *, clients_of: "Authority | None" = None, expired: bool = False
    ) -> ssl.SSLContext:
        """A server's side of TLS, for `name`; with `clients_of` only who has a certificate of that authority is served."""
        ends = dt.datetime.now(dt.UTC) - dt.timedelta(days=1) if expired else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name, not_after=ends).configure_cert(context)
        if clients_of is not None:
            clients_of._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
