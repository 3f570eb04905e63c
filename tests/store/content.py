"""Files to store: their bytes, their identities, and a store to put them in."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter.config import CacheConfig
from snapshotter.store.cache_db import CacheDB
from snapshotter.store.identity import FileIdentity, StoredIdentity
from snapshotter.store.objects import ObjectStore

NO_LIMITS = CacheConfig(quota=0, min_free=0)
DOMAIN = "node"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def bytes_of(size: int, seed: int = 0) -> bytes:
    """`size` bytes that look random, different for each seed."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(size)


def identity_of(data: bytes, chunk: int | None = None) -> StoredIdentity:
    """The file cut into chunks of `chunk` bytes, with all digests."""
    chunk = chunk or len(data)
    chunks = tuple(
        (offset, len(data[offset : offset + chunk]), sha256(data[offset : offset + chunk]))
        for offset in range(0, len(data), chunk)
    )
    return StoredIdentity(sha256(data), len(data), chunks, derived=False)


def without_digests(identity: StoredIdentity, name: bytes) -> StoredIdentity:
    """The same file as a TOC without any digest has it."""
    chunks = tuple((offset, size, b"") for offset, size, _ in identity.chunks)
    return StoredIdentity(sha256(name), identity.size, chunks, derived=True)


def part(data: bytes, identity: FileIdentity, ordinal: int) -> bytes:
    offset, size, _ = identity.chunks[ordinal]
    return data[offset : offset + size]


def put(store: ObjectStore, data: bytes, identity: FileIdentity, ordinal: int, domain: str = DOMAIN) -> bool:
    """Write and commit one chunk."""
    with store.writer(domain, identity, ordinal) as writer:
        writer.write(part(data, identity, ordinal))
        return writer.commit()


def put_all(store: ObjectStore, data: bytes, identity: FileIdentity, domain: str = DOMAIN) -> None:
    for ordinal in range(len(identity.chunks)):
        put(store, data, identity, ordinal, domain)


def content(store: ObjectStore, identity: FileIdentity, domain: str = DOMAIN) -> bytes | None:
    return store.read(domain, identity.digest, identity.size, 0, identity.size)


@contextmanager
def opened(root: Path, limits: CacheConfig = NO_LIMITS, boot: str = "boot 1") -> Iterator[ObjectStore]:
    """A store that ends in order."""
    root.mkdir(exist_ok=True)
    store = ObjectStore(root, CacheDB(root / "cache.db", boot), limits)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def killed(root: Path, boot: str = "boot 1", limits: CacheConfig = NO_LIMITS) -> Iterator[ObjectStore]:
    """A store whose process ends without a word: nothing of `close` reaches the disk, descriptors go."""
    root.mkdir(exist_ok=True)
    db = CacheDB(root / "cache.db", boot)
    store = ObjectStore(root, db, limits)
    try:
        yield store
    finally:
        store._handles.close()
        store._partials.close()
        store._objects.close()
        store._late.close()
        store._unproven.close()
        db.close()


def du(root: Path) -> int:
    """Bytes on disk of content files, each inode once."""
    found = {}
    for top in ("objects", "late", "unproven", "partial"):
        for path in (root / top).rglob("*"):
            if path.is_file():
                status = path.lstat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def place_of(root: Path) -> str:
    """The one directory of `objects`."""
    (place,) = os.listdir(root / "objects")
    return place


def object_path(root: Path, digest: bytes, domain: str = DOMAIN, top: str = "objects") -> Path:
    folder = root / top / place_of(root) if top in ("objects", "late") else root / top
    return folder / domain / digest.hex()[:2] / digest.hex()


def spoil(path: Path, offset: int = 0) -> None:
    """Flip one byte, as a torn write or a bad disk would; the time stamp stays."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
