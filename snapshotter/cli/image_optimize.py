"""`snapshotter image optimize`: runs the image in containerd once, and converts it with what it read in front."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import click
import trio

from snapshotter.cli.convert_options import access_of, conversion_of, conversion_options, target_of
from snapshotter.cli.convert_view import conclude, interrupted, watching
from snapshotter.cli.heeding import heeding
from snapshotter.cli.image_convert import PLACES
from snapshotter.cli.record_out import Write, record_out, records_of
from snapshotter.cli.sample_options import (
    check_combination,
    names_of,
    network_of,
    overrides_of,
    sample_options,
    streams_of,
    watching_of,
)
from snapshotter.cli.sample_view import note, sample_json, tell_end, tell_files
from snapshotter.image.convert.conversion import Conversion, ConvertOptions, convert
from snapshotter.image.convert.layers import Watcher
from snapshotter.image.convert.prefetch import literal
from snapshotter.image.optimize.kept_blobs import KeptBlobs
from snapshotter.image.optimize.record_file import RECORD_MAX, Recorded, parse_record
from snapshotter.image.optimize.running import Request, Sampled, Voice, sample_image
from snapshotter.image.places.location import Location, parse_location
from snapshotter.image.places.opening import Access, open_places
from snapshotter.image.scratch import scratch_directory

EPILOG = f"""{PLACES}
\b
Examples:
  snapshotter image optimize host/app:1 host/app:1-fast
  snapshotter image optimize --net-host --wait-on-line 'listening on' SRC DST
  snapshotter image optimize --args '["-c", "import json"]' SRC DST
"""


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything that one command is to do; `request` is None where nothing is run."""

    places: tuple[Location, Location]
    access: Access
    options: ConvertOptions
    request: Request | None
    record: Write
    quiet: bool


@click.command("optimize", epilog=EPILOG)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@sample_options
@conversion_options
def optimize_command(*, source: str, destination: str, as_json: bool, **values: Any) -> None:
    """Make an image that starts early when it is pulled lazily: what its program reads first comes first.

    A container of SRC runs for a while in containerd, with the program that the image names or that you name. What it opens and
    reads is noted, in order, and DST is SRC converted as by `image convert` with these files in front of each layer, where a node
    fetches them in one go. Nothing of the run is left behind. It needs root and containerd; our daemon it does not need.
    """
    values = {**values, "as_json": as_json}
    check_combination(values)
    options, access = conversion_of(values), access_of(values)
    places = parse_location(source), target_of(destination, options)
    request: Request | None = None
    if values["record_in"] is not None:
        options = replace(options, prefetch=[literal(one.path) for one in _record(values["record_in"])])
    elif not values["no_optimize"] and values["prefetch_list"] is None:
        request = _request(source, options, values)
    started = time.monotonic()
    # Opened before anything runs: a run may have taken long when it turns out that its record goes nowhere.
    with record_out(values["record_out"]) as record:
        done = trio.run(_optimize, _Work(places, access, options, request, record, as_json))
    if done is None:
        interrupted(places[1])
    conversion, sampled = done
    if sampled is not None:
        # What the program itself wrote is read and in no layer: not worth a word for each.
        conversion = replace(conversion, images=tuple(replace(image, missing=()) for image in conversion.images))
    seconds = time.monotonic() - started
    conclude(conversion, places[1], seconds, as_json=as_json, more={"sample": sample_json(sampled)})


def _request(source: str, options: ConvertOptions, values: Mapping[str, Any]) -> Request:
    network, plugin_dirs = network_of(values)
    return Request(
        name=source,
        overrides=overrides_of(values),
        watching=watching_of(values),
        streams=streams_of(values),
        names=names_of(values),
        snapshotter=values["snapshotter"],
        host=options.host,
        platforms=options.platforms,
        host_network=values["host_network"],
        network=network,
        plugin_dirs=plugin_dirs,
    )


async def _optimize(work: _Work) -> tuple[Conversion, Sampled | None] | None:
    """Run, if something is to be run, and convert; None if a signal came before the target had its name."""

    def watched() -> AbstractContextManager[Watcher]:
        return watching(quiet=work.quiet)

    async def do() -> tuple[Conversion, Sampled | None]:
        async with open_places(work.places[0], work.places[1], work.access) as (source, target):
            if work.request is None:
                with watched() as watcher:
                    return await convert(source, target, work.options, watcher), None
            # What the conversion needs lies in there, too: a killed command's room comes back with the next one.
            with scratch_directory(work.options.scratch) as directory:
                blobs = KeptBlobs(source, directory)
                containerd, namespace = work.access.containerd, work.access.namespace
                voice = Voice(note, watched)
                sampled = await sample_image(containerd, namespace, blobs, directory, work.request, voice)
                tell_end(sampled, work.request.watching.line)
                # Whatever becomes of the conversion, the run need not be done again. Which layers have the files it finds out.
                work.record(records_of(sampled))
                prefetch = [literal(path) for path in sampled.paths]
                options = replace(work.options, prefetch=prefetch, scratch=directory)
                with watched() as watcher:
                    conversion = await convert(blobs, target, options, watcher)
                work.record(records_of(sampled, conversion))
                tell_files(conversion, sampled)
                return conversion, sampled

    return await heeding(do, lambda: note("stopping …"))


def _record(file: Any) -> Sequence[Recorded]:
    return parse_record(file.read(RECORD_MAX + 1))
