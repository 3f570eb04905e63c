"""Converting an image: every layer becomes eStargz, and everything else says so and stays as it was."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from snapshotter.errors import FormatError
from snapshotter.format.digest import Digest
from snapshotter.format.writer import WriterOptions
from snapshotter.image import documents
from snapshotter.image.convert.layers import ConvertedLayer, LayerWork, Watcher, Workshop
from snapshotter.image.convert.prefetch import assign
from snapshotter.image.convert.tree import ImageTree
from snapshotter.image.first_error import first_error
from snapshotter.image.places.ends import Source, Target
from snapshotter.registry.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    choose_platform,
    parse_manifest,
)
from snapshotter.registry.platform import Platform, compatible, normalised

# An index may name indexes; nobody needs more of them than this.
_INDEX_DEPTH = 4
_PUSHES_AT_ONCE = 4
_FETCHES_AT_ONCE = 3
_ATTESTS = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What to make of an image.

    `platform` is taken from an index, and demanded of a single image if `platform_demanded`; with `all_platforms` all
    of the index are converted. `prefetch` lists paths in the order in which a container reads them. `scratch` is a
    directory with room for the unpacked image.
    """

    platform: Platform
    scratch: Path
    writer: WriterOptions
    prefetch: Sequence[str] = ()
    platform_demanded: bool = False
    all_platforms: bool = False


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """One image for one platform; `missing` are the paths of the prefetch list that no layer has."""

    platform: Platform
    descriptor: Descriptor
    layers: tuple[ConvertedLayer, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the target's name means now, the images in it, and what was left out and why."""

    descriptor: Descriptor
    images: tuple[ConvertedImage, ...]
    left_out: tuple[str, ...]


async def convert(source: Source, target: Target, options: ConvertOptions, watcher: Watcher) -> Conversion:
    """Convert the image at `source` to `target`; its name is the last thing that is written.

    Raises:
        FormatError: not an image, or one with layers that cannot be converted.
        IntegrityError: the source does not hold what its digests say.
        RegistryError, StoreError: and their subclasses.
    """
    top = await source.manifest(None)
    document = parse_manifest(top.raw, top.media_type)
    descriptor = Descriptor(top.media_type, top.digest, len(top.raw))
    try:
        if isinstance(document, ImageIndex) and options.all_platforms:
            return await _convert_index(document, source, target, options, watcher)
        for _ in range(_INDEX_DEPTH):
            if isinstance(document, ImageManifest):
                break
            images = tuple(child for child in document.manifests if _ATTESTS not in child.annotations)
            descriptor = choose_platform(replace(document, manifests=images), options.platform)
            chosen = await source.manifest(descriptor)
            document = parse_manifest(chosen.raw, chosen.media_type)
        else:
            raise FormatError(f"the image's index leads to indexes more than {_INDEX_DEPTH} deep")
        image, raw = await _convert_image(document, descriptor, source, target, options, watcher)
        await target.name_image(raw, image.descriptor)
        return Conversion(image.descriptor, (image,), ())
    except BaseExceptionGroup as group:
        raise first_error(group) from group


async def _convert_index(
    index: ImageIndex, source: Source, target: Target, options: ConvertOptions, watcher: Watcher
) -> Conversion:
    """Convert each image of an index, one after the other, so that the scratch directory holds one at a time."""
    images: list[ConvertedImage] = []
    left_out: list[str] = []
    for child in index.manifests:
        if _ATTESTS in child.annotations:
            left_out.append(f"{child.digest}: an attestation of an image that is not this one any more")
            continue
        if child.platform is not None and child.platform.os != "linux":
            left_out.append(f"{child.digest}: for {child.platform}, which this cannot convert")
            continue
        manifest = await source.manifest(child)
        document = parse_manifest(manifest.raw, manifest.media_type)
        if isinstance(document, ImageIndex):
            raise FormatError(f"{child.digest} is an index within the index; convert it by its own digest")
        image, raw = await _convert_image(document, child, source, target, options, watcher)
        await target.put_manifest(raw, image.descriptor)
        images.append(image)
    if not images:
        raise FormatError("the index holds no image that can be converted")
    entries = [replace(image.descriptor, platform=image.platform) for image in images]
    raw = documents.index_json(entries, index.annotations)
    descriptor = _described(raw, OCI_INDEX)
    await target.name_image(raw, descriptor)
    return Conversion(descriptor, tuple(images), tuple(left_out))


async def _convert_image(
    manifest: ImageManifest,
    descriptor: Descriptor,
    source: Source,
    target: Target,
    options: ConvertOptions,
    watcher: Watcher,
) -> tuple[ConvertedImage, bytes]:
    """Convert one image up to its manifest, which is returned and not yet stored."""
    config = documents.parse_config(await source.document(manifest.config), manifest.config, len(manifest.layers))
    platform = Platform(config.os or "linux", config.architecture, config.variant)
    if options.platform_demanded and not options.all_platforms:
        _check_platform(platform, options.platform)
    for layer in manifest.layers:
        if layer.media_type not in documents.LAYERS:
            raise FormatError(f"layer {layer.digest} is {layer.media_type}, which cannot be converted")
    with Workshop(options.scratch, options.writer, watcher) as workshop:
        works = [LayerWork(layer, diff_id) for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)]
        await _fetch_all(works, source, workshop)
        tree = ImageTree()
        for work in works:
            work.join(tree)
        wanted, missing = assign(options.prefetch, tree, len(works))
        layers = await _write_all(works, wanted, target, workshop)
    raw_config = documents.config_json(config, [layer.diff_id for layer in layers])
    new_config = _described(raw_config, documents.OCI_CONFIG)
    await target.put_blob(new_config, raw_config)
    raw = documents.manifest_json(new_config, [layer.descriptor for layer in layers], manifest.annotations)
    new = replace(_described(raw, OCI_MANIFEST), annotations=descriptor.annotations)
    return ConvertedImage(platform, new, tuple(layers), tuple(missing)), raw


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
    works: Sequence[LayerWork], wanted: Sequence[Sequence[str]], target: Target, workshop: Workshop
) -> list[ConvertedLayer]:
    """Write the layers one after the other, each with all threads, while those that are written are pushed."""
    slots = trio.CapacityLimiter(_PUSHES_AT_ONCE)
    layers: list[ConvertedLayer] = []

    async def push(number: int, layer: ConvertedLayer, path: Path) -> None:
        async with slots:
            stored = await target.put_blob(layer.descriptor, path)
            workshop.tell_stored(number, len(works), layer, stored=stored)

    async with trio.open_nursery() as nursery:
        for number, (work, names) in enumerate(zip(works, wanted, strict=True), 1):
            layer, path = await workshop.write(number, work, names)
            layers.append(layer)
            nursery.start_soon(push, number, layer, path)
    return layers


def _check_platform(there: Platform, wanted: Platform) -> None:
    if normalised(there) not in compatible(wanted):
        raise FormatError(
            f"the image is for {there}, not for {wanted}; leave out --platform to convert it all the same"
        )


def _described(raw: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type, Digest(f"sha256:{hashlib.sha256(raw).hexdigest()}"), len(raw))
