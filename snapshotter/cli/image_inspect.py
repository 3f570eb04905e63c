"""`snapshotter image inspect`: needs no daemon, and fetches no layer."""

import platform
import sys
from typing import Any

import click
import trio

from snapshotter.cli.convert_options import access_of, access_options
from snapshotter.cli.heeding import heeding
from snapshotter.cli.inspect_view import as_json as json_of
from snapshotter.cli.inspect_view import show_inspection
from snapshotter.cli.options import json_option, platforms_of
from snapshotter.cli.show import print_json
from snapshotter.errors import ConfigError, NotFound
from snapshotter.image.inspect.inspection import ImageLook, Inspection, InspectOptions, inspect
from snapshotter.image.inspect.tables import LayerLook
from snapshotter.image.places.location import Location, parse_location
from snapshotter.image.places.opening import Access
from snapshotter.registry.platform import host_platform

NOTES = """\b
IMAGE is one of
  host/name:tag, docker://host/name:tag   in a registry
  oci:DIR[:TAG]                           in an OCI image layout
  oci-archive:FILE[:TAG]                  the same in a tar file
  docker-archive:FILE[:NAME]              what docker save writes
  containerd:NAME                         in containerd's store

\b
Formats of layers that can be lazy: estargz, stargz, zstd:chunked and
external-toc (eStargz with its table of contents in another image). What is
in a layer of another format cannot be told without fetching it.

\b
IN FRONT is what a node prefetches: bytes of the layer, and files where there
is room. In a list of --files these have a * at the beginning; the number
before the name is where a file begins in the layer.
"""


@click.command("inspect", epilog=NOTES)
@click.argument("image", metavar="IMAGE")
@click.option(
    "--platform",
    "platform_texts",
    multiple=True,
    metavar="OS/ARCH[/VARIANT]",
    help="Which image of an index, else this host's; may be given several times.",
)
@click.option("--all-platforms", is_flag=True, help="Every image of an index.")
@click.option(
    "--top",
    type=click.IntRange(0, 1_000_000),
    default=5,
    show_default=True,
    metavar="N",
    help="So many of the biggest files and directories.",
)
@click.option("--files", is_flag=True, help="List every entry of every layer.")
@click.option(
    "--toc",
    "toc_of",
    metavar="LAYER",
    help="Print the table of contents of a layer as it is, and nothing else. LAYER is a number, or how its digest begins.",
)
@json_option
@access_options
def inspect_command(
    *,
    image: str,
    platform_texts: tuple[str, ...],
    all_platforms: bool,
    top: int,
    files: bool,
    toc_of: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Look into an image: its layers, whether they can be lazy, what is big.

    Of each layer nothing but the end is fetched, where its table of contents is.
    """
    platforms = platforms_of(platform_texts, all_platforms=all_platforms)
    if toc_of is not None and (as_json or files):
        raise ConfigError("--toc prints the table of contents alone: leave --json and --files out")
    location, access = parse_location(image), access_of(values)
    options = InspectOptions(
        host=host_platform(platform.machine()),
        platforms=platforms,
        all_platforms=all_platforms,
        top=top,
        whole=files or toc_of is not None,
    )
    found = trio.run(_inspect, location, access, options)
    if found is None:
        raise click.Abort
    if toc_of is not None:
        _print_toc(found, toc_of, options)
    elif as_json:
        print_json(json_of(str(location), found, files=files))
    else:
        show_inspection(str(location), found, str(options.host), files=files)


async def _inspect(location: Location, access: Access, options: InspectOptions) -> Inspection | None:
    return await heeding(lambda: inspect(location, access, options))


def _print_toc(found: Inspection, wanted: str, options: InspectOptions) -> None:
    if not found.images:
        raise NotFound(f"there is no image for {options.host}; say --platform")
    layer = _layer(found.images[0], wanted)
    if layer.toc is None:
        raise NotFound(f"layer {layer.number} ({layer.descriptor.digest}) shows no table of contents: {layer.why}")
    sys.stdout.buffer.write(layer.toc.document)
    sys.stdout.buffer.flush()


def _layer(look: ImageLook, wanted: str) -> LayerLook:
    """The layer that a number, or the beginning of a digest, means."""
    by_number = [layer for layer in look.layers if str(layer.number) == wanted]
    digits = wanted.removeprefix("sha256:")
    by_digest = [layer for layer in look.layers if digits and layer.descriptor.digest.startswith(f"sha256:{digits}")]
    found = by_number or by_digest
    if len({layer.descriptor.digest for layer in found}) != 1:
        kind = "more than one layer has a digest that begins so" if found else f"it has {len(look.layers)} layers"
        raise NotFound(f"--toc {wanted!r} names no layer of the image for {look.platform}: {kind}")
    return found[0]
