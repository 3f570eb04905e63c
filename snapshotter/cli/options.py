"""Options that several commands share. The command line outranks the environment, and that the configuration file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from snapshotter.config_values import parse_size
from snapshotter.errors import ConfigError
from snapshotter.registry.platform import Platform, normalised

Command = TypeVar("Command", bound=Callable[..., Any])


class AbsolutePath(click.Path):
    """A path that stays valid wherever it is handed to; links are kept, since they are what people configured."""

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)  # whoever opens it says what is wrong

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the absolute path."""
        return Path(os.fsdecode(super().convert(value, param, ctx))).absolute()


config_option = click.option(
    "--config",
    "config_path",
    type=AbsolutePath(),
    envvar="ESTARGZ_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help="Configuration file; /etc/estargz/config.toml if that exists.",
)

address_option = click.option(
    "--address",
    type=AbsolutePath(),
    envvar="ESTARGZ_ADDRESS",
    show_envvar=True,
    metavar="SOCKET",
    help="Unix socket of the daemon; otherwise what the configuration says.",
)

containerd_option = click.option(
    "--containerd",
    "containerd_address",
    type=AbsolutePath(),
    envvar="CONTAINERD_ADDRESS",
    show_envvar=True,
    metavar="SOCK",
    help="containerd's socket; otherwise what the configuration says.",
)


def namespace_option(what: str) -> Callable[[Command], Command]:
    """The option --namespace; `what` is looked for there, as its help says."""
    return click.option(
        "--namespace",
        envvar="CONTAINERD_NAMESPACE",
        show_envvar=True,
        default="default",
        show_default=True,
        metavar="NAME",
        help=f"containerd's namespace {what}; pods take theirs from k8s.io.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; sizes are bytes.")

timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the daemon may take to answer.",
)


def daemon_options(command: Command) -> Command:
    """Give a command the options of everything that asks the daemon: --config, --address, --json."""
    for option in (json_option, address_option, config_option):
        command = option(command)
    return command


def size_option(_context: click.Context, _option: click.Parameter, value: str) -> int:
    """Read an option's size, such as 4MiB; a callback, because click's own types differ between its versions."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} must be {error}") from None


def platforms_of(texts: Sequence[str], *, all_platforms: bool) -> tuple[Platform, ...]:
    """The platforms that --platform, given several times, asks for beside --all-platforms.

    Raises:
        ConfigError: one is none, or both were given.
    """
    if texts and all_platforms:
        raise ConfigError("--platform and --all-platforms exclude each other")
    return tuple(dict.fromkeys(map(parse_platform, texts)))


def parse_platform(text: str) -> Platform:
    """Read the value of --platform.

    Raises:
        ConfigError: it is none.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise ConfigError(f"--platform {text!r}: write OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64")
    return normalised(Platform(*parts))
