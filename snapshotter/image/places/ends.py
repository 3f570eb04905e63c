"""What converting asks of the place an image comes from, and of the place it goes to."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from snapshotter.errors import FormatError, IntegrityError
from snapshotter.format.digest import digest_of
from snapshotter.registry.manifest import Descriptor, Manifest

DOCUMENT_MAX = 8 << 20
"""Bytes of a configuration or manifest that are read into memory; containerd reads no more either."""


OnProgress = Callable[[int], None]
"""Takes how many bytes were moved since it was last called, from any thread; less than nothing where they must go again."""


def unheard(size: int) -> None:
    """Be told of progress and do nothing."""


class Source(Protocol):
    """Where an image is read from. Everything returned has the digest that was asked for."""

    async def manifest(self, descriptor: Descriptor | None) -> Manifest:
        """Return the manifest or index that `descriptor` names, None for the one that the location names."""

    async def document(self, descriptor: Descriptor) -> bytes:
        """Return a blob of at most 8 MiB."""

    async def blob_file(self, descriptor: Descriptor, scratch: Path, on_progress: OnProgress) -> Path:
        """Return a file with the blob: one of the source's own, or a copy in the directory `scratch`."""

    async def read_range(self, descriptor: Descriptor, start: int, size: int) -> bytes:
        """Return exactly `size` bytes of a blob, which nothing vouches for: no digest covers a part."""


class Target(Protocol):
    """Where an image is written to. Nothing of it can be seen by its name until `name_image` was called.

    An archive is one file, and takes its name when the places are closed after that.
    """

    async def adopt(self, descriptor: Descriptor) -> bool:
        """Whether the blob is at the target without being sent: it is there, or could be had from where the source has it."""

    async def put_blob(self, descriptor: Descriptor, content: Path | bytes, on_progress: OnProgress = unheard) -> bool:
        """Store a blob unless it is there; whether it had to be stored."""

    async def put_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        """Store one manifest of an index."""

    async def name_image(self, raw: bytes, descriptor: Descriptor, suffix: str = "") -> None:
        """Store the manifest or index `raw` and give it the location's name, with `suffix` behind its tag."""


async def checked_document(source: Source, descriptor: Descriptor, where: str) -> bytes:
    """A small blob of `source`, checked against its digest. `where` names the source in errors.

    Raises:
        FormatError: it is not small.
        IntegrityError: it has another digest.
    """
    if descriptor.size > DOCUMENT_MAX:
        raise FormatError(f"{descriptor.digest} in {where} has {descriptor.size} bytes; the limit is 8 MiB")
    raw = await source.read_range(descriptor, 0, descriptor.size)
    if digest_of(raw) != descriptor.digest:
        raise IntegrityError(f"{descriptor.digest} in {where} does not have that digest; copy the image there again")
    return raw
