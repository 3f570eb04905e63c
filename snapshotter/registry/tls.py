"""TLS as a site has it: its own authorities, client certificates, and hosts that are not verified."""

import os
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path

from snapshotter.errors import HostsError

Stamp = tuple[tuple[str, int, int, int], ...]
"""What tells that files have changed: path, inode, modification time in ns, size."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How one server is spoken to. Equal values share connections.

    `ca` are files of authorities that are trusted beside the system's; `client` pairs of certificate and key (the same file
    where one holds both). `stamp` makes a renewed file another value. `told_in` is the hosts.toml that speaks of the server,
    if one does, for whoever must mend it.
    """

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path], ...] = ()
    skip_verify: bool = False
    stamp: Stamp = ()
    told_in: Path | None = field(default=None, compare=False)

    def elsewhere(self) -> "Tls":
        """For where the server redirects to: its authorities hold there too, but we do not say there who we are."""
        return replace(self, client=())

    def for_credentials(self, *, home: bool) -> "Tls":
        """For the token server that it names; one on another host is verified, for it is sent a password."""
        return self if home else replace(self, client=(), skip_verify=False)

    @property
    def usual(self) -> bool:
        """Nothing but what every program on the node does."""
        return not (self.ca or self.client or self.skip_verify)

    @property
    def file(self) -> str:
        """The file in which whoever reads an error says otherwise."""
        return f"{self.told_in}" if self.told_in is not None else "its hosts.toml"

    def context(self) -> ssl.SSLContext:
        """What OpenSSL needs; makes it anew, which takes some 0.05 s for the system's authorities alone. Raises as `check`."""
        context = ssl.create_default_context()
        self._load(context)
        if self.ca:
            # As Go reads them: what is named is trusted, be it an intermediate authority's or the server's own, and with the
            # extensions that it has. Newer Pythons are stricter by themselves.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def check(self) -> None:
        """Read all files. Raises HostsError: one cannot be read, or is not what it should be; it is named."""
        if not self.usual:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _load(self, context: ssl.SSLContext) -> None:
        for path in self.ca:
            try:
                context.load_verify_locations(cafile=path)
            except ssl.SSLError:
                raise HostsError(f"{path} holds no certificate of an authority in PEM form") from None
            except OSError as error:
                raise HostsError(f"{path}: the authority's certificate cannot be read: {error.strerror}") from None
        for certificate, key in self.client:
            _load_client(context, certificate, key)


def _load_client(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    both = f"{certificate}" if certificate == key else f"{certificate} with the key {key}"
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            what = "there is no such file" if not path.exists() else "no permission to read it"
            raise HostsError(f"client certificate {both}: {path}: {what}")
    try:
        # An encrypted key would make OpenSSL ask at the terminal.
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        why = "the key is not the certificate's" if error.reason == "KEY_VALUES_MISMATCH" else "not PEM, or not a pair"
        raise HostsError(f"client certificate {both} cannot be used: {why}") from None
    except (OSError, ValueError) as error:
        raise HostsError(f"client certificate {both} cannot be used: {error}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to give the password; store it without one")


def stamp_of(paths: tuple[Path, ...]) -> Stamp:
    """What tells later whether one of these files has changed; an absent one counts as such."""
    stamps = []
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            stamps.append((str(path), 0, 0, -1))
        else:
            stamps.append((str(path), found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(stamps)
