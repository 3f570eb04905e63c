"""The unix socket's path: whether it can be one, and whether it is free. Loads no gRPC, so that a start can ask first."""

import errno
import os
import secrets
import socket
import stat
from pathlib import Path

from snapshotter.errors import ConfigError, StoreError, StoreLocked

# sockaddr_un: 108 bytes with the closing zero (unix(7)).
_MAX_ADDRESS = 107
_PROBE_TIMEOUT_S = 2.0


def check_address(address: Path) -> None:
    """Say whether a server may be bound to `address`; a socket whose server is gone is no obstacle.

    Raises:
        StoreLocked: somebody answers there already.
        ConfigError: the address is too long, or something that is no socket lies there.
        StoreError: it cannot be looked at.
    """
    if max(len(os.fsencode(path)) for path in (address, passing_name(address))) > _MAX_ADDRESS:
        raise ConfigError(
            f"address {address} is too long: a socket's path may have {_MAX_ADDRESS} bytes, and what "
            "it is made under needs up to 12 behind the directory"
        )
    try:
        _refuse_taken(address)
    except OSError as error:
        raise StoreError(f"socket {address}: {error.strerror or error}") from error


def passing_name(address: Path) -> Path:
    """A new name beside `address`, under which the socket is made before it is renamed."""
    return address.parent / f".{secrets.token_hex(4)}" / "s"


def _refuse_taken(address: Path) -> None:
    try:
        mode = address.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"address {address} is not a socket but something else: remove it or choose another address")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(address))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return  # left by a process that is gone; the rename replaces it
            raise
    raise StoreLocked(f"somebody answers at {address} already: is another daemon running there?")
