"""Options of everything that makes an image: `image convert`, and `image optimize`, which converts what it has watched."""

import os
import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from snapshotter.cli.options import (
    AbsolutePath,
    config_option,
    containerd_option,
    json_option,
    namespace_option,
    platforms_of,
    size_option,
)
from snapshotter.cli.printing import printable
from snapshotter.config import load
from snapshotter.config_values import show_size
from snapshotter.containerd.client import checked_namespace
from snapshotter.errors import ConfigError
from snapshotter.format.writer.options import (
    CHUNK_SIZE_DEFAULT,
    CHUNK_SIZE_MAX,
    CHUNK_SIZE_MIN,
    GZIP_LEVELS,
    ZSTD_LEVELS,
    Compression,
    WriterOptions,
)
from snapshotter.image.convert.conversion import ConvertOptions
from snapshotter.image.convert.prefetch import parse_prefetch_list
from snapshotter.image.places.location import (
    DockerArchiveLocation,
    Location,
    RegistryLocation,
    parse_location,
    with_suffix,
)
from snapshotter.image.places.opening import Access
from snapshotter.layer.opening import EXTERNAL_SUFFIX
from snapshotter.registry.platform import host_platform

Command = TypeVar("Command", bound=Callable[..., Any])

# Unpacked layers are large and /tmp is often memory.
_BIG_TEMPORARY = "/var/tmp"  # noqa: S108 (where the private directory is made, not a file of ours)


def _chunk_size(context: click.Context, option: click.Parameter, value: str) -> int:
    size = size_option(context, option, value)
    if not CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX:
        least, most = show_size(CHUNK_SIZE_MIN), show_size(CHUNK_SIZE_MAX)
        raise click.BadParameter(f"{value!r} is not between {least} and {most}")
    return size


_LAYERS = (
    click.option(
        "--prefetch-list",
        type=click.File("rb"),
        metavar="FILE",
        help="Paths that a container reads first, one on a line, patterns with * ? [] ** too: they are put in front "
        "and fetched in one go. - is stdin.",
    ),
    click.option(
        "--platform",
        "platform_texts",
        multiple=True,
        metavar="OS/ARCH[/VARIANT]",
        help="Which image of an index; else this host's. Given several times, the result is an index of these.",
    ),
    click.option("--all-platforms", is_flag=True, help="Convert every image of an index."),
    click.option(
        "--reuse",
        is_flag=True,
        help="Leave layers alone that are in the wanted format already, however they are cut and whatever is in front in "
        "them. Not with --external-toc.",
    ),
    click.option(
        "--zstdchunked",
        is_flag=True,
        help="Make zstd:chunked layers, which podman pulls lazily as well, instead of gzip ones.",
    ),
    click.option(
        "--level",
        type=click.IntRange(1, max(GZIP_LEVELS.most, ZSTD_LEVELS.most)),
        metavar="N",
        help=f"How hard to compress. gzip: {GZIP_LEVELS.least} to {GZIP_LEVELS.most}, {GZIP_LEVELS.default} if not given, "
        f"which makes less than gzip -9 does. zstd: {ZSTD_LEVELS.least} to {ZSTD_LEVELS.most}, {ZSTD_LEVELS.default} if "
        "not given.",
    ),
    click.option(
        "--chunk-size",
        callback=_chunk_size,
        default=show_size(CHUNK_SIZE_DEFAULT),
        show_default=True,
        metavar="SIZE",
        help="Larger files are cut into pieces of this size, each fetched and verified on its own.",
    ),
    click.option(
        "--min-chunk-size",
        callback=size_option,
        default="0",
        show_default=True,
        metavar="SIZE",
        help="Compress small files together until they have this many bytes: a smaller image, of which each read "
        "fetches more. Not with --zstdchunked.",
    ),
    click.option(
        "--external-toc",
        is_flag=True,
        help="Put the tables of contents into an image of their own, DST with -esgztoc after its tag.",
    ),
    click.option(
        "--parallelism",
        type=click.IntRange(1, 256),
        default=lambda: len(os.sched_getaffinity(0)),
        show_default="one for each processor",
        metavar="N",
        help="Threads that compress; the result does not depend on it.",
    ),
    click.option(
        "--scratch",
        type=AbsolutePath(),
        default=lambda: os.environ.get("TMPDIR") or _BIG_TEMPORARY,
        show_default="$TMPDIR or /var/tmp",
        metavar="DIR",
        help="Where the layers lie while they are unpacked; needs room for the whole image.",
    ),
)
_ACCESS = (
    click.option("--plain-http", is_flag=True, help="Speak http with the registries that are named."),
    namespace_option("of images named containerd:…"),
    containerd_option,
    config_option,
)


def access_options(command: Command) -> Command:
    """Give a command the options that say how images are reached: --plain-http, --namespace, --containerd, --config."""
    for option in reversed(_ACCESS):
        command = option(command)
    return command


def conversion_options(command: Command) -> Command:
    """Give a command all options of a conversion; `conversion_of` and `access_of` read what they come to."""
    command = access_options(json_option(command))
    for option in reversed(_LAYERS):
        command = option(command)
    return command


def conversion_of(values: Mapping[str, Any]) -> ConvertOptions:
    """What the options of `conversion_options` ask for.

    Raises:
        ConfigError: they contradict each other.
    """
    platforms = platforms_of(values["platform_texts"], all_platforms=values["all_platforms"])
    if values["reuse"] and values["external_toc"]:
        raise ConfigError(
            "--reuse and --external-toc exclude each other: nothing says where the tables of layers are that have them outside"
        )
    for option in ("min_chunk_size", "external_toc"):
        if values["zstdchunked"] and values[option]:
            name = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"--zstdchunked and {name} exclude each other: readers of zstd:chunked know no such layers"
            )
    prefetch = values["prefetch_list"]
    return ConvertOptions(
        host=host_platform(platform.machine()),
        platforms=platforms,
        all_platforms=values["all_platforms"],
        prefetch=parse_prefetch_list(prefetch.read()) if prefetch else None,
        reuse=values["reuse"],
        scratch=values["scratch"],
        writer=WriterOptions(
            chunk_size=values["chunk_size"],
            level=values["level"],
            parallelism=values["parallelism"],
            min_chunk_size=values["min_chunk_size"],
            compression=Compression.ZSTD if values["zstdchunked"] else Compression.GZIP,
            external_toc=values["external_toc"],
        ),
    )


def access_of(values: Mapping[str, Any]) -> Access:
    """How the options of `access_options` reach images.

    Raises:
        ConfigError: no namespace, or a configuration file that cannot be read.
    """
    config = load(values["config_path"])
    return Access(
        registry=config.registry,
        plain_http=values["plain_http"],
        containerd=values["containerd_address"] or config.containerd.address,
        namespace=checked_namespace(values["namespace"]),
        scratch=values.get("scratch"),
        note=_say,
    )


def _say(sentence: str) -> None:
    click.echo(f"snapshotter: {printable(sentence)}", err=True)


def target_of(text: str, options: ConvertOptions) -> Location:
    """The place that DST names.

    Raises:
        ConfigError: not one that an image can be written to, or not with the second one that the options ask for.
    """
    place = parse_location(text)
    if isinstance(place, RegistryLocation) and place.reference.digest is not None:
        raise ConfigError(f"{text}: the digest of a converted image is not known before; name it by a tag")
    if options.writer.external_toc:
        if isinstance(place, DockerArchiveLocation):
            raise ConfigError(f"{text}: docker's archives have no room for --external-toc; write oci-archive:FILE:TAG")
        with_suffix(place, EXTERNAL_SUFFIX)  # refuses a name without a tag before the work, not after it
    return place
