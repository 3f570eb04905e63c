"""The registry client of a process. (Signatures; the body follows.)"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx

from snapshotter.config import RegistryConfig
from snapshotter.registry.blob import Blob
from snapshotter.registry.credentials import CredentialSource
from snapshotter.registry.hosts import HostsResolver
from snapshotter.registry.manifest import Manifest
from snapshotter.registry.reference import Reference

# What a push reads: a file, or a function that begins the content anew each time it is called (a retry calls it again).
Source = Path | Callable[[], AsyncIterator[bytes]]


class Registry:
    """All registries, through one pool of connections. Make it inside the trio run that uses it."""

    def __init__(
        self,
        config: RegistryConfig,
        connections_per_host: int = 24,
        *,
        hosts: HostsResolver | None = None,
        credentials: CredentialSource | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        raise NotImplementedError

    async def manifest(self, ref: Reference, digest: str | None = None) -> Manifest:
        """The manifest that `digest`, else the reference's digest, else its tag names; raw, verified, at most 8 MiB."""
        raise NotImplementedError

    def blob(self, ref: Reference, digest: str, size: int) -> Blob:
        """The blob `digest` in the repository of `ref`; no request is made."""
        raise NotImplementedError

    async def blob_exists(self, ref: Reference, digest: str) -> bool:
        """Whether the repository has the blob."""
        raise NotImplementedError

    async def push_blob(
        self, ref: Reference, digest: str, size: int, source: Source, *, mount_from: str | None = None
    ) -> bool:
        """Upload a blob unless the repository has it; whether bytes were sent. `mount_from`: a repository of the host."""
        raise NotImplementedError

    async def push_manifest(self, ref: Reference, raw: bytes, media_type: str) -> str:
        """Store a manifest under the tag (or digest) of `ref` and return its digest."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close every connection."""
        raise NotImplementedError
