"""`snapshotter image convert`: needs no daemon."""

import time
from typing import Any

import click
import trio

from snapshotter.cli.convert_options import access_of, conversion_of, conversion_options, target_of
from snapshotter.cli.convert_view import conclude, interrupted, watching
from snapshotter.cli.heeding import heeding
from snapshotter.image.convert.conversion import Conversion, ConvertOptions, convert
from snapshotter.image.convert.layers import Watcher
from snapshotter.image.places.location import Location, parse_location
from snapshotter.image.places.opening import Access, open_places

PLACES = """\b
SRC and DST are each one of
  host/name:tag, docker://host/name:tag   a registry
  oci:DIR[:TAG]                           an OCI image layout
  oci-archive:FILE[:TAG]                  the same in a tar file
  docker-archive:FILE[:NAME]              what docker save writes
  containerd:NAME                         containerd's store
"""


@click.command("convert", epilog=PLACES)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@conversion_options
def convert_command(*, source: str, destination: str, as_json: bool, **values: Any) -> None:
    """Make an image that can be pulled lazily, and stays an ordinary OCI image for everybody else."""
    options, access = conversion_of(values), access_of(values)
    places = parse_location(source), target_of(destination, options)
    started = time.monotonic()
    with watching(quiet=as_json) as watcher:
        conversion = trio.run(_convert, places, access, options, watcher)
    if conversion is None:
        interrupted(places[1])
    conclude(conversion, places[1], time.monotonic() - started, as_json=as_json)


async def _convert(
    places: tuple[Location, Location], access: Access, options: ConvertOptions, watcher: Watcher
) -> Conversion | None:
    """Convert; None if a signal came before the target had its name."""

    async def work() -> Conversion:
        async with open_places(*places, access) as (source, target):
            return await convert(source, target, options, watcher)

    return await heeding(work)
