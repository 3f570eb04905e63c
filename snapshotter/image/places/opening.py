"""From locations to the source and the target of one piece of work."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import trio

from snapshotter.config import RegistryConfig
from snapshotter.containerd import leases
from snapshotter.errors import ConfigError
from snapshotter.image.places.archive_file import open_archive
from snapshotter.image.places.archive_image import docker_image, oci_image
from snapshotter.image.places.archive_target import writing_archive
from snapshotter.image.places.containerd_source import ContainerdSource, reaching
from snapshotter.image.places.containerd_target import containerd_target
from snapshotter.image.places.ends import Source, Target
from snapshotter.image.places.layout import OciLayout
from snapshotter.image.places.location import (
    ContainerdLocation,
    DockerArchiveLocation,
    LayoutLocation,
    Location,
    OciArchiveLocation,
    RegistryLocation,
)
from snapshotter.image.places.registry_image import RegistryImage, Repositories
from snapshotter.registry.client import Registry
from snapshotter.registry.reference import Reference

log = logging.getLogger(__name__)

_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Access:
    """How places are reached. `plain_http`: the registries that locations name speak no TLS. `containerd` is a socket."""

    registry: RegistryConfig
    plain_http: bool
    containerd: Path
    namespace: str
    scratch: Path | None = None
    """Where a compressed archive lies while it is read, None for $TMPDIR."""
    note: Callable[[str], None] = log.warning
    """Is told what people should know."""


@overload
def open_places(
    source: Location, target: Location, access: Access
) -> AbstractAsyncContextManager[tuple[Source, Target]]: ...


@overload
def open_places(source: Location, target: None, access: Access) -> AbstractAsyncContextManager[tuple[Source, None]]: ...


@asynccontextmanager
async def open_places(source: Location, target: Location | None, access: Access) -> AsyncIterator[tuple[Source, Any]]:
    """Yield both ends; a target whose image has no name when the block ends keeps nothing of it.

    Raises:
        ConfigError: nothing can be written under the target's name.
        NotFound, StoreError, ContainerdError: there is no such archive, directory or containerd.
    """
    _check_target(target)
    async with AsyncExitStack() as stack:
        registry = Registry(_registry_config(source, target, access))
        stack.push_async_callback(_close, registry)
        opener = _Opener(stack, registry, access)
        first = await opener.source(source)
        yield first, await opener.target(target, first) if target is not None else None


class _Opener:
    """Opens places; what they hold open ends with `stack`."""

    def __init__(self, stack: AsyncExitStack, registry: Registry, access: Access) -> None:
        self._stack = stack
        self._registry = registry
        self._access = access

    async def source(self, place: Location) -> Source:
        if isinstance(place, RegistryLocation):
            return RegistryImage(self._registry, place)
        if isinstance(place, LayoutLocation):
            return OciLayout(place)
        if isinstance(place, ContainerdLocation):
            client = self._stack.enter_context(reaching(self._access.containerd, self._access.namespace))
            return ContainerdSource(client, place, self._registry)
        archive = await self._stack.enter_async_context(open_archive(place.path, self._access.scratch))
        if isinstance(place, OciArchiveLocation):
            return await oci_image(archive, place.tag)
        return await docker_image(archive, place.tag)

    async def target(self, place: Location, source: Source) -> Target:
        if isinstance(place, RegistryLocation):
            return RegistryImage(self._registry, place, _repositories(source))
        if isinstance(place, LayoutLocation):
            return OciLayout(place)
        if isinstance(place, ContainerdLocation):
            lease = leases.new_id("convert")
            client = self._stack.enter_context(reaching(self._access.containerd, self._access.namespace, lease))
            return await self._stack.enter_async_context(containerd_target(client, place, self._access.note))
        return await self._stack.enter_async_context(writing_archive(place))


async def _close(registry: Registry) -> None:
    """Close connections also where the work was given up: what has got its name by then must be told."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
        await registry.aclose()


def _repositories(source: Source) -> Repositories | None:
    return source.repositories if isinstance(source, RegistryImage | ContainerdSource) else None


def _check_target(target: Location | None) -> None:
    reference: Reference | None = None
    if isinstance(target, RegistryLocation | ContainerdLocation):
        reference = target.reference
    elif isinstance(target, DockerArchiveLocation):
        reference = target.tag
    if reference is not None and reference.digest is not None:
        raise ConfigError(f"{target}: the digest of an image is not known before it is written; name it by a tag")


def _registry_config(source: Location, target: Location | None, access: Access) -> RegistryConfig:
    if not access.plain_http:
        return access.registry
    named = (place for place in (source, target) if isinstance(place, RegistryLocation | ContainerdLocation))
    hosts = {place.reference.host for place in named if place.reference is not None}
    return replace(access.registry, plain_http=(*access.registry.plain_http, *sorted(hosts)))
