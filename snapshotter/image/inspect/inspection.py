"""Look into an image without fetching its layers: documents whole, of each layer the end of its blob."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import trio

from snapshotter.errors import BlobMissing, ConfigError, FormatError, NotFound, NotLazy, Reason
from snapshotter.format.footer import Flavor
from snapshotter.format.limits import TOC_COMPRESSED
from snapshotter.image.convert.selection import Chosen, choose, choose_all
from snapshotter.image.documents import CONFIGS, ImageConfig, parse_config
from snapshotter.image.inspect.contents import SeenTree, SizedDirectory, SizedFile
from snapshotter.image.inspect.tables import LayerLook, look_into
from snapshotter.image.places.ends import Source
from snapshotter.image.places.location import Location, with_suffix
from snapshotter.image.places.opening import Access, open_places
from snapshotter.layer.opening import DATA_LAYER, EXTERNAL_SUFFIX
from snapshotter.registry.manifest import Descriptor, ImageIndex, choose_platform, parse_manifest
from snapshotter.registry.platform import Platform, normalised

_AT_ONCE = 4
"""Layers whose tables of contents are in memory in all their forms at the same time."""


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """Which images of an index: that for `host`, or those for `platforms`, or all."""

    host: Platform
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    top: int = 10
    """So many files and directories, the biggest ones."""
    whole: bool = False
    """Keep every table of contents and its entries, too; else an image of many large layers does not take much memory."""


@dataclass(frozen=True, slots=True)
class Member:
    """A manifest of an index. `attests`: it says something of another one and is no image."""

    descriptor: Descriptor
    attests: bool


@dataclass(frozen=True, slots=True)
class ImageLook:
    """One image. A container sees `seen_size` bytes of files of the layers that can be looked into, `files` and `directories` the
    biggest of them.
    """

    descriptor: Descriptor
    platform: str
    config: ImageConfig
    layers: tuple[LayerLook, ...]
    seen_size: int
    files: Sequence[SizedFile]
    directories: Sequence[SizedDirectory]

    @property
    def is_lazy(self) -> bool:
        """Whether every layer can be mounted lazily."""
        return bool(self.layers) and all(layer.reason is None for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a location names. `members` are those of an index, empty for an image; `fetched` is how many bytes of layers were read."""

    top: Descriptor
    members: tuple[Member, ...]
    images: tuple[ImageLook, ...]
    fetched: int


async def inspect(location: Location, access: Access, options: InspectOptions) -> Inspection:
    """Look at everything that `location` names.

    Raises:
        SnapshotterError: there is no such image, or nobody says.
    """
    async with AsyncExitStack() as stack:
        source, _ = await stack.enter_async_context(open_places(location, None, access))
        manifest = await source.manifest(None)
        document = parse_manifest(manifest.raw, manifest.media_type)
        top = Descriptor(document.media_type, manifest.digest, len(manifest.raw))
        members: tuple[Member, ...] = ()
        if isinstance(document, ImageIndex):
            members = tuple(Member(child, child.attests) for child in document.manifests)
        chosen = await _chosen(Chosen(top, document), source, options)
        tocs = _ExternalTocs(stack, location, access)
        look = _Look(source, tocs, options)
        images = [await look.image(one) for one in chosen]
        return Inspection(top, members, tuple(images), look.fetched)


async def _chosen(top: Chosen, source: Source, options: InspectOptions) -> list[Chosen]:
    if not isinstance(top.document, ImageIndex):
        return [top]
    if options.all_platforms:
        return await choose_all(top, source, [])
    if not options.platforms:
        images = tuple(child for child in top.document.manifests if not child.attests)
        try:
            choose_platform(replace(top.document, manifests=images), options.host)
        except FormatError:
            return []  # what there is for others is worth showing
    return [await choose(top, platform, source) for platform in options.platforms or (options.host,)]


class _ExternalTocs:
    """The image beside an image that holds its tables of contents; looked for once, when a layer says so."""

    def __init__(self, stack: AsyncExitStack, location: Location, access: Access) -> None:
        self._stack = stack
        self._location = location
        self._access = access
        self._found: tuple[Source, Mapping[str, Descriptor]] | None = None

    async def section(self, layer: Descriptor) -> bytes:
        """The compressed table of contents of `layer`. Raises NotLazy: there is none."""
        if self._found is None:
            try:
                self._found = await self._look()
            except (NotFound, BlobMissing, ConfigError) as error:
                raise NotLazy(
                    Reason.NOT_LAZY_FORMAT, f"its table of contents should be in another image: {error}"
                ) from error
        source, tables = self._found
        table = tables.get(layer.digest)
        if table is None:
            raise NotLazy(Reason.NOT_LAZY_FORMAT, "its table of contents is not in the image that should have it")
        if table.size > TOC_COMPRESSED:
            raise NotLazy(Reason.LIMIT, f"its table of contents has {table.size} bytes; the limit is {TOC_COMPRESSED}")
        return await source.read_range(table, 0, table.size)

    async def _look(self) -> tuple[Source, Mapping[str, Descriptor]]:
        beside = with_suffix(self._location, EXTERNAL_SUFFIX)
        source, _ = await self._stack.enter_async_context(open_places(beside, None, self._access))
        manifest = await source.manifest(None)
        document = parse_manifest(manifest.raw, manifest.media_type)
        if isinstance(document, ImageIndex):
            raise NotLazy(Reason.NOT_LAZY_FORMAT, f"{beside}, which should hold tables of contents, is an index")
        return source, {row.annotations.get(DATA_LAYER, ""): row for row in document.layers}


class _Look:
    def __init__(self, source: Source, tocs: _ExternalTocs, options: InspectOptions) -> None:
        self._source = source
        self._tocs = tocs
        self._options = options
        self.fetched = 0

    async def image(self, chosen: Chosen) -> ImageLook:
        manifest = chosen.image()
        if manifest.config.media_type not in CONFIGS:
            raise FormatError(
                f"{chosen.descriptor.digest} has the config {manifest.config.media_type}: it is no image of a container"
            )
        raw = await self._source.document(manifest.config)
        config = parse_config(raw, manifest.config, len(manifest.layers))
        layers: list[LayerLook] = []
        tree = SeenTree()
        for first in range(0, len(manifest.layers), _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, len(manifest.layers)))
            for found in await self._together(numbers, manifest.layers, config.diff_ids):
                look = await self._with_toc(found)
                if look.toc is not None:
                    await trio.to_thread.run_sync(tree.add, look.number, look.toc.listing.rows)
                layers.append(look if self._options.whole else look.outlined())
        seen = await trio.to_thread.run_sync(tree.biggest, self._options.top)
        platform = str(normalised(Platform(config.os, config.architecture, config.variant)))
        return ImageLook(chosen.descriptor, platform, config, tuple(layers), *seen)

    async def _together(
        self, numbers: Iterable[int], layers: Sequence[Descriptor], diff_ids: Sequence[str]
    ) -> list[LayerLook]:
        found: dict[int, LayerLook] = {}

        async def look(number: int) -> None:
            found[number] = await look_into(number + 1, layers[number], diff_ids[number], self._read)

        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(look, number)
        return [found[number] for number in sorted(found)]

    async def _with_toc(self, look: LayerLook) -> LayerLook:
        """`look`, with the table of contents of a layer that keeps it elsewhere: that place is opened by the task that closes it."""
        if look.format != Flavor.EXTERNAL:
            return look
        return await look_into(look.number, look.descriptor, look.diff_id, self._read, self._external)

    async def _read(self, layer: Descriptor, start: int, size: int) -> bytes:
        data = await self._source.read_range(layer, start, size)
        self.fetched += len(data)
        return data

    async def _external(self, layer: Descriptor) -> bytes:
        section = await self._tocs.section(layer)
        self.fetched += len(section)
        return section


def config_summary(config: ImageConfig) -> dict[str, Any]:
    """What a container is started with, by the names of the configuration; what is not there is null."""
    inner = config.document.get("config")
    words: Mapping[str, Any] = inner if isinstance(inner, dict) else {}
    created = config.document.get("created")
    return {
        "created": created if isinstance(created, str) else None,
        "user": words.get("User") or None,
        "working_dir": words.get("WorkingDir") or None,
        "entrypoint": words.get("Entrypoint") or None,
        "cmd": words.get("Cmd") or None,
        "env": words.get("Env") or None,
        "exposed_ports": sorted(map(str, words.get("ExposedPorts") or ())) or None,
        "volumes": sorted(map(str, words.get("Volumes") or ())) or None,
        "stop_signal": words.get("StopSignal") or None,
        "labels": words.get("Labels") or None,
    }
