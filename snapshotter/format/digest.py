"""Content digests: the text form of manifests and TOCs, and the raw form of index and store."""

import hashlib
import re
from typing import NewType

from snapshotter.errors import FormatError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lowercase hexadecimal digits."""

RAW_SIZE = 32

_FORM = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> Digest:
    """Check that `text` is a sha256 digest and return it.

    Raises:
        FormatError: another algorithm, a wrong length, or anything else.
    Source: OCI Image Specification 1.1, descriptor.md, "Digests".
    """
    if _FORM.fullmatch(text) is None:
        raise FormatError(f"{text[:100]!r} is not a sha256 digest (sha256: and 64 lowercase hex digits)")
    return Digest(text)


def raw(digest: Digest) -> bytes:
    """Return the 32 bytes of a digest."""
    return bytes.fromhex(digest[7:])


def from_raw(value: bytes) -> Digest:
    """Return the text form of 32 raw bytes.

    Raises:
        FormatError: not 32 bytes.
    """
    if len(value) != RAW_SIZE:
        raise FormatError(f"a raw sha256 digest has 32 bytes, not {len(value)}")
    return Digest("sha256:" + value.hex())


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of `data`."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
