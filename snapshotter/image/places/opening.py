"""From locations to the source and the target of one piece of work."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

from snapshotter.config import RegistryConfig
from snapshotter.errors import ConfigError
from snapshotter.image.places.ends import Source, Target
from snapshotter.image.places.layout import OciLayout
from snapshotter.image.places.location import LayoutLocation, Location, RegistryLocation
from snapshotter.image.places.registry_image import RegistryImage
from snapshotter.registry.client import Registry


@dataclass(frozen=True, slots=True)
class Access:
    """How places are reached. `plain_http`: the registries that locations name speak no TLS. `containerd` is a socket."""

    registry: RegistryConfig
    plain_http: bool
    containerd: Path
    namespace: str
    scratch: Path | None = None
    """Where a compressed archive lies while it is read, None for $TMPDIR."""


@overload
def open_places(
    source: Location, target: Location, access: Access
) -> AbstractAsyncContextManager[tuple[Source, Target]]: ...


@overload
def open_places(source: Location, target: None, access: Access) -> AbstractAsyncContextManager[tuple[Source, None]]: ...


def open_places(
    source: Location, target: Location | None, access: Access
) -> AbstractAsyncContextManager[tuple[Source, Target | None]]:
    """Yield both ends; a target whose image has no name when the block ends keeps nothing of it.

    Raises:
        ConfigError: nothing can be written under the target's name.
    """
    return _opened(source, target, access)


@asynccontextmanager
async def _opened(
    source: Location, target: Location | None, access: Access
) -> AsyncIterator[tuple[Source, Target | None]]:
    if isinstance(target, RegistryLocation) and target.reference.digest is not None:
        raise ConfigError(f"{target}: the digest of an image is not known before it is written; name it by a tag")
    places = [place for place in (source, target) if place is not None]
    async with AsyncExitStack() as stack:
        registry = Registry(_registry_config(places, access))
        stack.push_async_callback(registry.aclose)

        def end(place: Location) -> RegistryImage | OciLayout:
            if isinstance(place, RegistryLocation):
                return RegistryImage(registry, place.reference)
            if isinstance(place, LayoutLocation):
                return OciLayout(place)
            raise ConfigError(f"{place} cannot be used yet")

        ends = [end(place) for place in places]
        yield ends[0], ends[1] if target is not None else None


def _registry_config(places: list[Location], access: Access) -> RegistryConfig:
    if not access.plain_http:
        return access.registry
    hosts = {place.reference.host for place in places if isinstance(place, RegistryLocation)}
    return replace(access.registry, plain_http=(*access.registry.plain_http, *sorted(hosts)))
