"""Which images of what a name means are converted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from snapshotter.errors import FormatError
from snapshotter.image.convert.twins import without_twins
from snapshotter.image.places.ends import Source
from snapshotter.registry.manifest import Descriptor, ImageIndex, ImageManifest, choose_platform, parse_manifest
from snapshotter.registry.platform import Platform

# An index may name indexes; nobody needs more of them than this.
_INDEX_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Chosen:
    """A manifest or index of the source, and the descriptor that named it."""

    descriptor: Descriptor
    document: ImageManifest | ImageIndex

    def image(self) -> ImageManifest:
        """The manifest of one image.

        Raises:
            FormatError: it is an index.
        """
        if isinstance(self.document, ImageIndex):
            raise FormatError(f"{self.descriptor.digest} is an index within the index; convert it by its own digest")
        return self.document


async def choose(top: Chosen, platform: Platform, source: Source) -> Chosen:
    """The image for `platform` in `top`; `top` itself if it is one image, whatever that is for.

    Raises:
        FormatError: no such image.
    """
    chosen = top
    for _ in range(_INDEX_DEPTH):
        if isinstance(chosen.document, ImageManifest):
            return chosen
        images = tuple(child for child in chosen.document.manifests if not child.attests)
        chosen = await _read(choose_platform(replace(chosen.document, manifests=images), platform), source)
    raise FormatError(f"the image's index leads to indexes more than {_INDEX_DEPTH} deep")


async def choose_all(top: Chosen, source: Source, left_out: list[str]) -> list[Chosen]:
    """All images of an index; what is none that can be converted is told to `left_out`.

    Raises:
        FormatError: there is no image in it.
    """
    chosen: list[Chosen] = []
    for child in without_twins(top.document.manifests) if isinstance(top.document, ImageIndex) else ():
        if child.attests:
            left_out.append(f"{child.digest}: an attestation, which is about the image before its conversion")
        elif child.platform is not None and child.platform.os != "linux":
            left_out.append(f"{child.digest}: for {child.platform}, which this cannot convert")
        else:
            chosen.append(await _read(child, source))
    if not chosen:
        raise FormatError("the index holds no image that can be converted")
    return chosen


def others(top: Chosen, chosen: Sequence[Chosen]) -> list[str]:
    """What an index has besides the images that nobody asked for by platform, in a sentence."""
    if not isinstance(top.document, ImageIndex):
        return []
    taken = {one.descriptor.digest for one in chosen}
    platforms = [
        str(one.platform)
        for one in without_twins(top.document.manifests)
        if one.platform is not None and one.digest not in taken and not one.attests
    ]
    return [f"the index's images for {', '.join(platforms)}; --all-platforms converts them too"] if platforms else []


async def _read(descriptor: Descriptor, source: Source) -> Chosen:
    manifest = await source.manifest(descriptor)
    return Chosen(descriptor, parse_manifest(manifest.raw, manifest.media_type))
