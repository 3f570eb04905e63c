"""`snapshotter image convert`: needs no daemon."""

import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from snapshotter.cli.options import AbsolutePath, json_option, parse_platform, size_option
from snapshotter.cli.show import human, print_json, printable
from snapshotter.config import RegistryConfig
from snapshotter.config_values import show_size
from snapshotter.errors import ConfigError
from snapshotter.format.writer import (
    CHUNK_SIZE_DEFAULT,
    CHUNK_SIZE_MAX,
    CHUNK_SIZE_MIN,
    LEVEL_DEFAULT,
    LEVEL_MAX,
    LEVEL_MIN,
    WriterOptions,
)
from snapshotter.image.convert.conversion import Conversion, ConvertOptions, convert
from snapshotter.image.convert.layers import Advance, ConvertedLayer
from snapshotter.image.convert.prefetch import parse_prefetch_list
from snapshotter.image.places.layout import OciLayout
from snapshotter.image.places.location import LayoutLocation, Location, RegistryLocation, parse_location
from snapshotter.image.places.registry_image import RegistryImage
from snapshotter.registry.client import Registry
from snapshotter.registry.platform import host_platform

# Unpacked layers are large and /tmp is often memory.
_BIG_TEMPORARY = "/var/tmp"  # noqa: S108 (where the private directory is made, not a file of ours)


def _chunk_size(context: click.Context, option: click.Parameter, value: str) -> int:
    size = size_option(context, option, value)
    if not CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX:
        least, most = show_size(CHUNK_SIZE_MIN), show_size(CHUNK_SIZE_MAX)
        raise click.BadParameter(f"{value!r} is not between {least} and {most}")
    return size


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--prefetch-list",
    type=click.File("rb"),
    metavar="FILE",
    help="Paths that a container reads first, one on a line: they are put in front and fetched in one go. - is stdin.",
)
@click.option(
    "--platform", "platform_text", metavar="OS/ARCH[/VARIANT]", help="Which image of an index; else this host's."
)
@click.option("--all-platforms", is_flag=True, help="Convert every image of an index.")
@click.option(
    "--chunk-size",
    callback=_chunk_size,
    default=show_size(CHUNK_SIZE_DEFAULT),
    show_default=True,
    metavar="SIZE",
    help="Larger files are cut into pieces of this size, each fetched and verified on its own.",
)
@click.option(
    "--level",
    type=click.IntRange(LEVEL_MIN, LEVEL_MAX),
    default=LEVEL_DEFAULT,
    show_default=True,
    help="1 is fastest, 7 makes less than gzip -9 does, 12 is smallest and slow.",
)
@click.option(
    "--parallelism",
    type=click.IntRange(1, 256),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="one for each processor",
    metavar="N",
    help="Threads that compress; the result does not depend on it.",
)
@click.option(
    "--scratch",
    type=AbsolutePath(),
    default=lambda: os.environ.get("TMPDIR") or _BIG_TEMPORARY,
    show_default="$TMPDIR or /var/tmp",
    metavar="DIR",
    help="Where the layers lie while they are unpacked; needs room for the whole image.",
)
@click.option("--plain-http", is_flag=True, help="Speak http with the registries of SRC and DST.")
@json_option
def convert_command(
    source: str,
    destination: str,
    prefetch_list: Any,
    platform_text: str | None,
    all_platforms: bool,  # noqa: FBT001
    chunk_size: int,
    level: int,
    parallelism: int,
    scratch: Path,
    plain_http: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make an image that can be pulled lazily, and stays an ordinary OCI image for everybody else.

    SRC and DST are references (host/name:tag, docker://host/name:tag) or OCI layouts (oci:DIR[:TAG]).
    """
    if platform_text is not None and all_platforms:
        raise ConfigError("--platform and --all-platforms exclude each other")
    options = ConvertOptions(
        platform=parse_platform(platform_text) if platform_text else host_platform(platform.machine()),
        platform_demanded=platform_text is not None,
        all_platforms=all_platforms,
        prefetch=parse_prefetch_list(prefetch_list.read()) if prefetch_list else (),
        scratch=scratch,
        writer=WriterOptions(chunk_size, level, parallelism),
    )
    places = parse_location(source), parse_location(destination)
    if isinstance(places[1], RegistryLocation) and places[1].reference.digest is not None:
        raise ConfigError(f"{destination}: the digest of a converted image is not known before; name it by a tag")
    started = time.monotonic()
    with _watching(quiet=as_json) as watcher:
        conversion = trio.run(_convert, places, plain_http, options, watcher)
    for line in conversion.left_out:
        click.echo(f"snapshotter: left out: {line}", err=True)
    for one in conversion.images:
        for path in one.missing:
            click.echo(f"snapshotter: the image for {one.platform} has no {printable(path)} to prefetch", err=True)
    if as_json:
        print_json(_as_json(str(places[1]), conversion, time.monotonic() - started))
    else:
        click.echo(f"{places[1]}@{conversion.descriptor.digest}")


async def _convert(
    places: tuple[Location, Location],
    plain_http: bool,  # noqa: FBT001
    options: ConvertOptions,
    watcher: "_Watcher",
) -> Conversion:
    hosts = tuple({place.reference.host for place in places if isinstance(place, RegistryLocation)})
    async with AsyncExitStack() as stack:
        ends: list[RegistryImage | OciLayout] = []
        registry: Registry | None = None
        for place in places:
            if isinstance(place, LayoutLocation):
                ends.append(OciLayout(place))
                continue
            if registry is None:
                registry = Registry(RegistryConfig(plain_http=hosts if plain_http else ()))
                stack.push_async_callback(registry.aclose)
            ends.append(RegistryImage(registry, place.reference))
        return await convert(ends[0], ends[1], options, watcher)


class _Watcher:
    """Progress for people: bars on a terminal, elsewhere a line for each layer; nothing for programs."""

    def __init__(self, bars: Progress | None, *, quiet: bool) -> None:
        self._bars = bars
        self._quiet = quiet
        self._lock = threading.Lock()  # guards the order of lines on standard error

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[Advance]:
        """Show a bar while the block runs."""
        if self._bars is None:
            yield lambda _size: None
            return
        bars = self._bars
        task = bars.add_task(what, total=total)
        try:
            yield lambda size: bars.advance(task, size)
        finally:
            bars.remove_task(task)

    def layer_done(self, number: int, count: int, layer: ConvertedLayer, *, stored: bool) -> None:
        """Say what became of a layer."""
        if self._quiet:
            return
        sizes = f"{human(layer.source.size)} → {human(layer.descriptor.size)}"
        if layer.written is None:
            what = f"stays an ordinary layer: {printable(layer.why_kept)}"
        else:
            what = f"{sizes}, {layer.written.entries} entries, {human(layer.written.prefetch_size)} prefetched"
        line = f"layer {number}/{count}: {what}" + ("" if stored else " (was there already)")
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(line)
            else:
                click.echo(line, err=True)


@contextmanager
def _watching(*, quiet: bool) -> Iterator[_Watcher]:
    if quiet or not sys.stderr.isatty():
        yield _Watcher(None, quiet=quiet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Watcher(bars, quiet=False)


def _as_json(target: str, conversion: Conversion, seconds: float) -> dict[str, Any]:
    return {
        "target": target,
        "digest": conversion.descriptor.digest,
        "media_type": conversion.descriptor.media_type,
        "seconds": round(seconds, 3),
        "left_out": list(conversion.left_out),
        "images": [
            {
                "platform": str(one.platform),
                "digest": one.descriptor.digest,
                "missing": list(one.missing),
                "layers": [_layer_json(layer) for layer in one.layers],
            }
            for one in conversion.images
        ],
    }


def _layer_json(layer: ConvertedLayer) -> dict[str, Any]:
    written = layer.written
    return {
        "source_digest": layer.source.digest,
        "source_size": layer.source.size,
        "digest": layer.descriptor.digest,
        "size": layer.descriptor.size,
        "diff_id": layer.diff_id,
        "toc_digest": written.toc_digest if written else None,
        "plain_size": written.plain_size if written else None,
        "entries": written.entries if written else None,
        "prefetch_size": written.prefetch_size if written else None,
        "why_kept": layer.why_kept or None,
    }
