"""What the store must know of a file before it takes bytes for it, and the name of its partial file."""

import hashlib
import struct
from typing import NamedTuple, Protocol

from snapshotter.errors import FormatError

DIGEST_SIZE = 32

# digest 32 + size 8 + chunk count 4 + derived 1 + padding 3 = 48
_HEAD = struct.Struct("<32sQIB3x")
# file offset 8 + size 8 + chunk has a digest 1 + padding 7 + chunk digest 32 = 56
_CHUNK = struct.Struct("<QQB7x32s")

ChunkSpec = tuple[int, int, bytes]


class FileIdentity(Protocol):
    """A file as its TOC describes it; `format.index.FileIdentity` is one. Rooms at one height do not import each other."""

    @property
    def digest(self) -> bytes:
        """The raw sha256 of the content, or a derived name (`derived`)."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""

    @property
    def chunks(self) -> tuple[ChunkSpec, ...]:
        """(file offset, size, raw sha256 or b"" where the TOC has none), in order, without gaps."""

    @property
    def derived(self) -> bool:
        """True when `digest` is only a name and says nothing of the content."""


def encode_identity(identity: FileIdentity) -> bytes:
    """Everything that two files must have in common to share a partial file, as bytes.

    Two TOCs can name one digest and cut it differently or give other chunk digests; what one of them calls verified
    must not be served to the other.

    Raises:
        FormatError: a digest is not 32 bytes long or a number does not fit.
    """
    if len(identity.digest) != DIGEST_SIZE:
        raise FormatError(f"content digest of {len(identity.digest)} bytes, sha256 has {DIGEST_SIZE}")
    parts = []
    try:
        parts.append(_HEAD.pack(identity.digest, identity.size, len(identity.chunks), identity.derived))
        for file_offset, size, digest in identity.chunks:
            if len(digest) not in (0, DIGEST_SIZE):
                raise FormatError(f"chunk digest of {len(digest)} bytes, sha256 has {DIGEST_SIZE}")
            parts.append(_CHUNK.pack(file_offset, size, bool(digest), digest))
    except struct.error as error:
        raise FormatError(f"file {identity.digest.hex()}: {error}") from error
    return b"".join(parts)


class StoredIdentity(NamedTuple):
    """A `FileIdentity` read back from a map file."""

    digest: bytes
    size: int
    chunks: tuple[ChunkSpec, ...]
    derived: bool


def decode_identity(data: bytes) -> tuple[StoredIdentity, int]:
    """The identity at the beginning of `data`, and how many bytes it took.

    Raises:
        FormatError: `data` ends inside it.
    """
    try:
        digest, size, count, derived = _HEAD.unpack_from(data)
        end = _HEAD.size + count * _CHUNK.size
        if end > len(data):
            raise FormatError(f"identity of {count} chunks in {len(data)} bytes")
        chunks = tuple(
            (offset, length, chunk_digest if has_digest else b"")
            for offset, length, has_digest, chunk_digest in _CHUNK.iter_unpack(data[_HEAD.size : end])
        )
    except struct.error as error:
        raise FormatError(f"identity in {len(data)} bytes: {error}") from error
    return StoredIdentity(digest, size, chunks, bool(derived)), end


def partial_name(encoded: bytes) -> str:
    """The name of the partial file of an encoded identity: 64 hex digits."""
    return hashlib.sha256(encoded).hexdigest()


def large_name(identity: FileIdentity) -> str:
    """The name of a large file where it is found by its identity: `<digest>-<128 bits of the identity's hash>`, in hex.

    Half of the hash is enough: a TOC that cuts the file otherwise would have to meet the same half.

    Raises:
        FormatError: as `encode_identity`.
    """
    return f"{identity.digest.hex()}-{partial_name(encode_identity(identity))[:32]}"


class ContentPaths:
    """Where contents are found below the data-only layers: `/<place>/<domain>/<ab>/<name>`.

    The name is a digest in hex, or a `large_name`. `place` is a secret of the node: overlayfs looks such a path up in the
    ordinary layers below, too, and an image that knew it could have its own file taken for the content.
    """

    def __init__(self, place: str, domain: str) -> None:
        self.directory = f"/{place}/{domain}".encode("ascii")

    def large(self, identity: FileIdentity) -> bytes:
        """The path of a file with several chunks. Raises FormatError as `large_name`."""
        name = large_name(identity).encode("ascii")
        return b"%b/%b/%b" % (self.directory, name[:2], name)
