"""A file of passwords as Apache's htpasswd writes it with bcrypt, the only kind that docker-registry takes."""

import ctypes
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

_SALT_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# The least work that bcrypt knows: tests are no attackers.
_ROUNDS = "05"


def write_htpasswd(path: Path, users: Mapping[str, str]) -> None:
    """Put `users` (name → password) in the place of what `path` holds, in one step."""
    beside = path.with_suffix(".new")
    beside.write_text("".join(f"{name}:{_bcrypt(password)}\n" for name, password in users.items()))
    if path.exists():
        # docker-registry reads it again when its time is later, in whole seconds on some file systems.
        later = path.stat().st_mtime + 2
        os.utime(beside, (later, later))
    beside.rename(path)


def _bcrypt(password: str) -> str:
    """By the C library's own crypt, so that no package is needed."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    # 16 bytes are 21 letters and the two upper bits of one more: "." has none of the others set.
    salt = "".join(secrets.choice(_SALT_ALPHABET) for _ in range(21)) + "."
    found: bytes | None = crypt(password.encode(), f"$2b${_ROUNDS}${salt}".encode())
    assert found is not None
    assert found.startswith(b"$2b$"), found
    return found.decode()
