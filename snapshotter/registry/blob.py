"""One blob of a registry, read in byte ranges. (Signatures; the body follows.)"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager


class Blob:
    """A blob that a manifest names: `size` bytes with the sha256 `digest`, at `host`. Safe for many readers at once."""

    host: str
    digest: str
    size: int

    async def read_range(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of the blob beginning at `start`."""
        raise NotImplementedError

    def open_range(self, start: int, length: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream exactly `length` bytes beginning at `start` in pieces of at most 1 MiB; resumes where a body broke."""
        raise NotImplementedError

    async def read_whole(self, limit: int) -> bytes:
        """Return the whole blob, checked against its digest; FormatError if it is larger than `limit`."""
        raise NotImplementedError
