"""Converting an image: every layer becomes lazy, and everything else says so and stays as it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from snapshotter.errors import FormatError
from snapshotter.format.writer.options import WriterOptions
from snapshotter.image import documents
from snapshotter.image.convert.external_tocs import store_tocs
from snapshotter.image.convert.layers import ConvertedLayer, LayerWork, Watcher, Workshop
from snapshotter.image.convert.prefetch import assign
from snapshotter.image.convert.selection import Chosen, choose, choose_all, others
from snapshotter.image.convert.tree import ImageTree
from snapshotter.image.convert.twins import COMPRESSED_BY_ZSTD, twin_of
from snapshotter.image.first_error import first_error
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, ImageIndex, parse_manifest
from snapshotter.registry.platform import Platform, compatible, normalised

_PUSHES_AT_ONCE = 4
_FETCHES_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What to make of an image.

    `platforms` are taken from an index, and demanded of a single image; none means that of `host`, demanded of nobody.
    More than one of them, or `all_platforms`, make an index. `prefetch` lists paths in the order in which a container
    reads them; without one, what an earlier conversion put in front stays there. With `reuse` layers that are lazy in
    the wanted format already stay as they are. `scratch` is a directory with room for the unpacked image.
    """

    host: Platform
    scratch: Path
    writer: WriterOptions
    prefetch: Sequence[str] | None = None
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """One image for one platform. `missing` are the paths of the prefetch list that no layer has; `front` has for each
    layer, lowest first, the names that it wants in front, and that are put there unless the layer stays as it is.
    """

    platform: Platform
    source_digest: str
    descriptor: Descriptor
    layers: tuple[ConvertedLayer, ...]
    front: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the target's name means now, the images in it, and what was left out and why; `tocs` is the manifest of
    the image with their tables of contents if these are external.
    """

    descriptor: Descriptor
    images: tuple[ConvertedImage, ...]
    left_out: tuple[str, ...]
    tocs: Descriptor | None


async def convert(source: Source, target: Target, options: ConvertOptions, watcher: Watcher) -> Conversion:
    """Convert the image at `source` to `target`; its name is the last thing that is written.

    Raises:
        FormatError: not an image, or one with layers that cannot be converted.
        IntegrityError: the source does not hold what its digests say.
        RegistryError, StoreError, ContainerdError: and their subclasses.
    """
    try:
        return await _convert(source, target, options, watcher)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _convert(source: Source, target: Target, options: ConvertOptions, watcher: Watcher) -> Conversion:
    top = await source.manifest(None)
    document = parse_manifest(top.raw, top.media_type)
    whole = Chosen(Descriptor(top.media_type, top.digest, len(top.raw)), document)
    left_out: list[str] = []
    demanded: dict[str, list[Platform]] = {}
    if isinstance(document, ImageIndex) and options.all_platforms:
        chosen = await choose_all(whole, source, left_out)
    else:
        chosen = [await choose(whole, platform, source) for platform in options.platforms or (options.host,)]
        left_out += others(whole, chosen) if not options.platforms else ()
        for one, platform in zip(chosen, options.platforms, strict=False):
            demanded.setdefault(one.descriptor.digest, []).append(platform)
    done: dict[str, tuple[ConvertedImage, bytes]] = {}
    for one in chosen:
        # One after the other, so that the scratch directory holds one at a time; each once, whatever it is listed for.
        if one.descriptor.digest not in done:
            if len(chosen) > 1:
                watcher.image(str(one.descriptor.platform or one.descriptor.digest))
            done[one.descriptor.digest] = await _convert_image(
                one, demanded.get(one.descriptor.digest, ()), source, target, options, watcher
            )
    images = [image for image, _ in done.values()]
    image, raw = done[chosen[0].descriptor.digest]
    descriptor = image.descriptor
    entries = _entries(chosen, done)
    twins = [twin for entry, manifest in entries if (twin := twin_of(manifest, entry)) is not None]
    if twins or len(options.platforms) > 1 or (options.all_platforms and isinstance(document, ImageIndex)):
        for image, raw in done.values():
            await target.put_manifest(raw, image.descriptor)
        for twin in twins:
            await target.put_manifest(twin.raw, twin.descriptor)
        annotations = document.annotations if isinstance(document, ImageIndex) else {}
        named = [*(entry for entry, _ in entries), *(twin.descriptor for twin in twins)]
        raw = documents.index_json(named, annotations)
        descriptor = documents.described(raw, OCI_INDEX)
    # Directly before the name: an image that had it keeps its tables of contents until then.
    tocs = await store_tocs([layer for image in images for layer in image.layers], target)
    await target.name_image(raw, descriptor)
    return Conversion(descriptor, tuple(images), tuple(left_out), tocs)


def _entries(
    chosen: Sequence[Chosen], done: Mapping[str, tuple[ConvertedImage, bytes]]
) -> list[tuple[Descriptor, bytes]]:
    """The index of the converted images, with their manifests: a line for each platform that the source lists."""
    entries: dict[tuple[str, Platform], tuple[Descriptor, bytes]] = {}
    for one in chosen:
        image, raw = done[one.descriptor.digest]
        platform = one.descriptor.platform or image.platform
        entries[image.descriptor.digest, platform] = replace(image.descriptor, platform=platform), raw
    return list(entries.values())


async def _convert_image(
    chosen: Chosen,
    demanded: Sequence[Platform],
    source: Source,
    target: Target,
    options: ConvertOptions,
    watcher: Watcher,
) -> tuple[ConvertedImage, bytes]:
    """Convert one image, asked for by each of `demanded`, up to its manifest, which is returned and not yet stored."""
    manifest = chosen.image()
    config = documents.parse_config(await source.document(manifest.config), manifest.config, len(manifest.layers))
    # What an index says comes first, as for containerd: configurations of images for arm often lack the variant.
    platform = chosen.descriptor.platform or Platform(config.os or "linux", config.architecture, config.variant)
    if chosen.descriptor.platform is None:
        _check_platform(platform, demanded)
    for layer in manifest.layers:
        if layer.media_type not in documents.LAYERS:
            raise FormatError(f"layer {layer.digest} is {layer.media_type}, which cannot be converted")
    with Workshop(options.scratch, options.writer, watcher, reuse=options.reuse) as workshop:
        works = [LayerWork(layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)]
        await _fetch_all(works, source, workshop)
        tree = _joined(works)
        lacking = [(number, work) for number, work in enumerate(works, 1) if work.lacks_directories]
        for number, work in lacking:
            await workshop.take_back(number, work, source)
        if lacking:
            tree = _joined(works)
        front, missing = assign(options.prefetch or (), tree, len(works))
        if options.prefetch is None:
            front = [[] if work.reused else work.prefetched for work in works]
        layers = await _write_all(works, front, source, target, workshop)
    raw_config = documents.config_json(config, [layer.diff_id for layer in layers])
    new_config = documents.described(raw_config, documents.OCI_CONFIG)
    await target.put_blob(new_config, raw_config)
    raw = documents.manifest_json(new_config, [layer.descriptor for layer in layers], manifest.annotations)
    # What an index said of the old image's compression need not be true of this one's.
    kept = {key: value for key, value in chosen.descriptor.annotations.items() if key != COMPRESSED_BY_ZSTD}
    new = documents.described(raw, OCI_MANIFEST, kept)
    fronts = tuple(map(tuple, front))
    return ConvertedImage(platform, chosen.descriptor.digest, new, tuple(layers), fronts, tuple(missing)), raw


def _joined(works: Sequence[LayerWork]) -> ImageTree:
    tree = ImageTree()
    for work in works:
        work.join(tree)
    return tree


async def _fetch_all(works: Sequence[LayerWork], source: Source, workshop: Workshop) -> None:
    """Fetch, unpack and scan all layers; an upper one may need directories and links of those below it."""
    slots = trio.CapacityLimiter(_FETCHES_AT_ONCE)

    async def fetch(number: int, work: LayerWork) -> None:
        async with slots:
            await workshop.fetch(number, work, source)

    async with trio.open_nursery() as nursery:
        for number, work in enumerate(works, 1):
            nursery.start_soon(fetch, number, work)


async def _write_all(
    works: Sequence[LayerWork], front: Sequence[Sequence[str]], source: Source, target: Target, workshop: Workshop
) -> list[ConvertedLayer]:
    """Write the layers one after the other, each with all threads, while those that are written are pushed."""
    slots = trio.CapacityLimiter(_PUSHES_AT_ONCE)
    layers: list[ConvertedLayer] = []

    async def store(number: int, work: LayerWork, layer: ConvertedLayer) -> None:
        async with slots:
            await workshop.store(number, len(works), work, layer, source, target)

    async with trio.open_nursery() as nursery:
        for number, (work, names) in enumerate(zip(works, front, strict=True), 1):
            layer = await workshop.write(number, work, names)
            layers.append(layer)
            nursery.start_soon(store, number, work, layer)
    return layers


def _check_platform(there: Platform, wanted: Sequence[Platform]) -> None:
    others = [one for one in wanted if normalised(there) not in compatible(one)]
    if others:
        raise FormatError(
            f"the image is for {there}, not for {' or '.join(map(str, others))}; leave out --platform to convert it "
            "all the same"
        )
