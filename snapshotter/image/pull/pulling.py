"""Pulling an image into containerd: its name is the last thing that is written, and a lease keeps the rest until then.

Whatever ends a pull before that leaves no name, no lease and no active snapshot; what was fetched is then collected.
Source: containerd's client and unpacker, containerd-contract 3.1 and 3.6.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from snapshotter.api.descriptor_pb2 import Descriptor as ContainerdDescriptor
from snapshotter.containerd import images, ingest, leases
from snapshotter.containerd.client import Client
from snapshotter.containerd.introspection import Plugin
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.errors import SnapshotterError
from snapshotter.image.first_error import first_error
from snapshotter.image.labels import MANAGED, chain_ids, chain_label, children_labels, source_label
from snapshotter.image.pull.layers import Layers, Places
from snapshotter.image.pull.reasons import Reasons
from snapshotter.image.pull.resolve import Resolved, resolve
from snapshotter.image.pull.rows import LayerRow, Watcher
from snapshotter.registry.client import Registry
from snapshotter.registry.manifest import DOCKER_LIST, OCI_INDEX, Descriptor
from snapshotter.registry.platform import Platform, compatible
from snapshotter.registry.reference import Reference

CRI_NAMESPACE = "k8s.io"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull. A `demanded` platform is refused where the image is for another one. `daemon` is the socket of the
    snapshotter, asked why a layer is not lazy; `allow_unverified` is its configuration's key of that name.
    """

    reference: Reference
    platform: Platform
    demanded: bool
    snapshotter: Plugin
    daemon: Path | None
    allow_unverified: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that containerd has: the digest that its name means, its manifest's platform, its layers."""

    reference: Reference
    digest: str
    platform: Platform
    rows: Sequence[LayerRow]
    seconds: float


async def pull(registry: Registry, client: Client, request: PullRequest, watcher: Watcher) -> Pulled:
    """Pull an image into the client's namespace.

    Raises:
        FormatError: not an image, none for this platform, or one that containerd cannot unpack.
        IntegrityError: something is not what its digest says.
        RegistryError, ContainerdError: and their subclasses.
    """
    began_s = time.monotonic()
    image = await resolve(registry, request.reference, request.platform, demanded=request.demanded)
    if image.platform not in compatible(request.platform):
        watcher.note(f"the image is for {image.platform}, this host is {request.platform}")
    work = _Work(registry, client, request, image)
    try:
        await work.do(watcher)
    except BaseException as error:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
            await work.undo()
            await _end_lease(client, watcher, sync=True)
        if isinstance(error, BaseExceptionGroup):
            raise first_error(error) from error
        raise
    with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
        await _end_lease(client, watcher, sync=False)
    seconds = time.monotonic() - began_s
    return Pulled(request.reference, image.target.digest, image.platform, work.layers.rows, seconds)


class _Work:
    """One pull from the lease to the name."""

    def __init__(self, registry: Registry, client: Client, request: PullRequest, image: Resolved) -> None:
        self._client = client
        self._reference = request.reference
        self._image = image
        self._chain = chain_ids(image.diff_ids)
        self._snapshots = Snapshots(client, request.snapshotter.id)
        places = Places(
            registry,
            client,
            self._snapshots,
            Reasons(request.daemon),
            # A proxy plugin names its socket; those that are part of containerd mount nothing lazily.
            remote="address" in request.snapshotter.exports,
            allow_unverified=request.allow_unverified,
        )
        self.layers = Layers(places, request.reference, image, self._chain)
        self._named: list[str] = []

    async def do(self, watcher: Watcher) -> None:
        """Everything, in the order in which it may be cut off anywhere."""
        await leases.create(self._client)
        for document in self._image.documents:
            kind = "index" if document.descriptor.media_type in (OCI_INDEX, DOCKER_LIST) else "manifest"
            await self._keep(kind, document.descriptor, document.raw, children_labels(document.parsed))
        config = self._image.manifest.config
        await self._keep("config", config, self._image.config, {})
        await self.layers.unpack(watcher)
        if self._chain:
            label = chain_label(self._snapshots.name, self._chain[-1])
            await ingest.set_labels(self._client, config.digest, label)
        # Broken off in the middle, nobody could say whether the name is there. Its calls have deadlines of their own.
        with trio.CancelScope(shield=True):
            await self._name()

    async def undo(self) -> None:
        """Take away what the lease's end would not, or only later; what cannot be is left to it."""
        for name in self._named:
            with suppress(SnapshotterError):
                await images.forget(self._client, name)
        for key in self.layers.open_keys:
            with suppress(SnapshotterError):
                await self._snapshots.remove(key)

    async def _keep(self, kind: str, descriptor: Descriptor, raw: bytes, labels: dict[str, str]) -> None:
        await ingest.write_document(self._client, f"{kind}-{descriptor.digest}", descriptor.digest, raw)
        present = await ingest.labels_of(self._client, descriptor.digest)
        labels = {**labels, **source_label(self._reference, present)}
        await ingest.set_labels(self._client, descriptor.digest, labels)

    async def _name(self) -> None:
        """The image's record; in Kubernetes' namespace also those by which kubelet may ask for it, as CRI makes them."""
        target = self._image.target
        descriptor = ContainerdDescriptor(media_type=target.media_type, digest=target.digest, size=target.size)
        names, labels = [str(self._reference)], {}
        if self._client.namespace == CRI_NAMESPACE:
            names = [self._image.manifest.config.digest, f"{self._reference.name}@{target.digest}", *names]
            labels = dict([MANAGED])
        for name in dict.fromkeys(names):
            if await images.name(self._client, name, descriptor, labels):
                self._named.append(name)


async def _end_lease(client: Client, watcher: Watcher, *, sync: bool) -> None:
    if complaint := await leases.end(client, sync=sync):
        watcher.note(complaint)
