"""`snapshotter image optimize`: runs the image in containerd once, and converts it with what it read in front."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import trio

from snapshotter.cli.convert_options import access_of, conversion_of, conversion_options, target_of
from snapshotter.cli.convert_view import conclude, watching
from snapshotter.cli.heeding import heeding
from snapshotter.cli.image_convert import PLACES
from snapshotter.cli.sample_options import (
    check_combination,
    names_of,
    network_of,
    overrides_of,
    sample_options,
    streams_of,
    watching_of,
)
from snapshotter.cli.show import printable
from snapshotter.image.convert.conversion import Conversion, ConvertOptions, convert
from snapshotter.image.convert.layers import Watcher
from snapshotter.image.convert.prefetch import literal
from snapshotter.image.optimize.abandoned import working_directory
from snapshotter.image.optimize.kept_blobs import KeptBlobs
from snapshotter.image.optimize.record_file import RECORD_MAX, Recorded, format_record, parse_record
from snapshotter.image.optimize.running import Request, Sampled, Voice, sample_image
from snapshotter.image.optimize.sampling import Ending
from snapshotter.image.places.disk import disk_errors
from snapshotter.image.places.location import Location, parse_location
from snapshotter.image.places.opening import Access, open_places

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
    done = trio.run(_optimize, _Work(places, access, options, request, as_json))
    if done is None:
        click.echo(f"snapshotter: interrupted; {places[1]} is what it was", err=True)
        raise click.Abort
    conversion, sampled = done
    if sampled is not None:
        if values["record_out"] is not None:
            _write_record(values["record_out"], sampled, conversion)
        # What the program itself wrote is read and in no layer: not worth a word for each.
        conversion = replace(conversion, images=tuple(replace(image, missing=()) for image in conversion.images))
    seconds = time.monotonic() - started
    conclude(conversion, places[1], seconds, as_json=as_json, more={"sample": _as_json(sampled)})


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
            with working_directory(work.options.scratch) as directory:
                blobs = KeptBlobs(source, directory)
                containerd, namespace = work.access.containerd, work.access.namespace
                voice = Voice(_note, watched)
                sampled = await sample_image(containerd, namespace, blobs, directory, work.request, voice)
                _tell(sampled, work.request.watching.line)
                prefetch = [literal(path) for path in sampled.paths]
                options = replace(work.options, prefetch=prefetch, scratch=directory)
                with watched() as watcher:
                    conversion = await convert(blobs, target, options, watcher)
                _tell_platforms(conversion, sampled, work.request)
                return conversion, sampled

    return await heeding(do)


def _note(sentence: str) -> None:
    click.echo(f"snapshotter: {printable(sentence)}", err=True)


def _tell(sampled: Sampled, line: str) -> None:
    sample = sampled.sample
    _note(f"{len(sampled.paths)} files were read in {sample.seconds:.1f} s, until {sample.ending.value}")
    if line and sample.ending in (Ending.EXIT, Ending.PERIOD):
        _note(f"no line of its standard output had {line!r} in it")
    if sample.ending is Ending.EXIT and sample.exit_status != 0:
        _note(
            f"the program ended with exit code {sample.exit_status}; what it read until then is used. If it should have "
            "gone on, see what it said, and give it what it needs (--args, --env, --mount, --net-host)"
        )
    if sample.lost:
        _note(
            f"{sample.lost} accesses or more could not be noted, so files may be missing: run this again on an idler machine"
        )


def _as_json(sampled: Sampled | None) -> dict[str, Any] | None:
    if sampled is None:
        return None
    sample = sampled.sample
    return {
        "manifest_digest": sampled.manifest_digest,
        "files": list(map(printable, sampled.paths)),
        "seconds": round(sample.seconds, 3),
        "ended_by": sample.ending.name.lower(),
        "exit_status": sample.exit_status,
        "lost": sample.lost,
    }


def _tell_platforms(conversion: Conversion, sampled: Sampled, request: Request) -> None:
    others = [image for image in conversion.images if image.source_digest != sampled.manifest_digest]
    for image in others:
        known = sum(map(len, image.front))
        _note(
            f"only the image for {request.host} was run; the one for {image.platform} has the same list in front where it "
            f"has these files: {known}"
        )


def _record(file: Any) -> Sequence[Recorded]:
    return parse_record(file.read(RECORD_MAX + 1))


def _write_record(path: Path, sampled: Sampled, conversion: Conversion) -> None:
    """Write what was read, under the digest of the image that ran; if that was converted, what is in a layer, with its number."""
    records = [Recorded(name, sampled.manifest_digest) for name in sampled.paths]
    for image in conversion.images:
        if image.source_digest == sampled.manifest_digest:
            layers = {name: number for number, names in enumerate(image.front) for name in names}
            records = [replace(one, layer_index=layers[one.path]) for one in records if one.path in layers]
    with disk_errors(path):
        path.write_bytes(format_record(records))
