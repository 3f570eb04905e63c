"""A layer's blob under each reference that names it, known before there is a registry client to read it with.

A daemon that takes over serves what is on the node at once; the client, whose modules take a tenth of a second to load, comes
after that. A fetch that begins earlier waits for it here.
"""

from typing import TYPE_CHECKING

import trio

from snapshotter.registry.reference import Reference, canonical_host

if TYPE_CHECKING:
    from snapshotter.registry.blob import Blob
    from snapshotter.registry.client import Registry


class RegistryAccess:
    """The registry client, once there is one. Used on the trio thread."""

    def __init__(self) -> None:
        self._registry: Registry | None = None
        self._there = trio.Event()

    def give(self, registry: "Registry") -> None:
        """From now on fetches use this client."""
        self._registry = registry
        self._there.set()

    async def get(self) -> "Registry":
        """The client, after waiting for it."""
        while (registry := self._registry) is None:
            await self._there.wait()
        return registry


class Source:
    """One blob in one repository."""

    def __init__(self, access: RegistryAccess, reference: Reference, digest: str, size: int) -> None:
        self._access = access
        self._reference = reference
        self._digest = digest
        self._size = size
        self._blob: Blob | None = None
        self.host = reference.api_host
        """The registry's own server: the name that counts for waiting, breaking off and complaints."""
        self.name = f"{canonical_host(reference.host)}/{reference.repository}"
        """Registry and repository."""

    async def blob(self) -> "Blob":
        """The blob, which remembers where its registry redirects to."""
        if self._blob is None:
            registry = await self._access.get()
            # Another fetch may have made it meanwhile.
            self._blob = self._blob or registry.blob(self._reference, self._digest, self._size)
        return self._blob

    def forget_redirects(self) -> None:
        """Ask the registry itself again."""
        if self._blob is not None:
            self._blob.forget_redirects()
