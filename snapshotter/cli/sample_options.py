"""Options of a sample run: what the container runs, with what, for how long, and where what it reads is noted."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from snapshotter.cli.options import AbsolutePath
from snapshotter.errors import ConfigError
from snapshotter.image.optimize.cni import CONF_DIR, PLUGIN_DIRS, Network, first_network
from snapshotter.image.optimize.etc_files import Names, parse_list, parse_names, servers_in
from snapshotter.image.optimize.sampling import Watching
from snapshotter.image.optimize.stdio import Streams
from snapshotter.image.optimize.terminal import check_terminal
from snapshotter.image.optimize.workload import Overrides, check_env, parse_env_file, parse_mount, parse_words

Command = TypeVar("Command", bound=Callable[..., Any])

PERIOD_S = 10.0

_RESOLV_CONFS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

_WORKLOAD = (
    click.option(
        "--entrypoint",
        metavar="JSON",
        help="""Run this instead of the image's entrypoint, a JSON array: '["python3", "-m", "app"]'. The image's """
        "arguments stay unless --args is given.",
    ),
    click.option("--args", metavar="JSON", help="Arguments instead of the image's, a JSON array; [] for none."),
    click.option(
        "--env", multiple=True, metavar="NAME=VALUE", help="Set an environment variable; NAME alone takes one out."
    ),
    click.option(
        "--env-file",
        type=click.File("r"),
        metavar="FILE",
        help="Environment variables, one on a line; --env outranks them. NAME alone takes this command's own.",
    ),
    click.option("--cwd", metavar="DIR", help="Working directory instead of the image's."),
    click.option("--user", metavar="USER[:GROUP]", help="Run as this user instead of the image's; names or numbers."),
    click.option(
        "--mount",
        "mounts",
        multiple=True,
        metavar="SPEC",
        help="Mount something: type=bind,source=/data,destination=/data,options=rbind:ro. What is read there is not noted.",
    ),
    click.option("--terminal", "-t", is_flag=True, help="Give the program this terminal; needs -i."),
    click.option("-i", "interactive", is_flag=True, help="Pass standard input on to the program."),
)
_END = (
    click.option(
        "--period",
        "period_s",
        type=click.FloatRange(min=0.1),
        default=PERIOD_S,
        show_default=True,
        metavar="SECONDS",
        help="Watch for this long at most; a program that ends earlier ends it.",
    ),
    click.option(
        "--wait-on-line",
        "line",
        metavar="TEXT",
        help="Watch until a line of the program's output has this text in it, standard error too (and --period at most).",
    ),
    click.option(
        "--wait-on-signal",
        "until_signal",
        is_flag=True,
        help="Watch until you press Ctrl-C or the program ends, however long that takes, then convert.",
    ),
)
_NETWORK = (
    click.option("--net-host", "host_network", is_flag=True, help="Use this machine's network and names."),
    click.option(
        "--cni",
        is_flag=True,
        help="Connect the container by CNI plugins; without this and --net-host it has loopback only.",
    ),
    click.option(
        "--cni-plugin-conf-dir",
        type=AbsolutePath(),
        default=CONF_DIR,
        show_default=True,
        metavar="DIR",
        help="Where networks are configured: the first file by name counts.",
    ),
    click.option(
        "--cni-plugin-dir",
        type=AbsolutePath(),
        show_default=" or ".join(map(str, PLUGIN_DIRS)),
        metavar="DIR",
        help="Where the plugins are.",
    ),
    click.option(
        "--dns-nameservers",
        show_default="this machine's, but for those on loopback",
        metavar="LIST",
        help="Name servers for the container, with commas between them, as in all of these lists.",
    ),
    click.option("--dns-search-domains", default="", metavar="LIST", help="Domains in which names are looked up."),
    click.option("--dns-options", default="", metavar="LIST", help="Options of its etc/resolv.conf."),
    click.option("--add-hosts", default="", metavar="LIST", help="Entries NAME:ADDRESS of its etc/hosts."),
)
_RECORD = (
    click.option(
        "--record-out",
        type=AbsolutePath(),
        metavar="FILE",
        help="Write down what was read, in order, as ctr-remote does.",
    ),
    click.option(
        "--record-in",
        type=click.File("rb"),
        metavar="FILE",
        help="Run nothing: take what --record-out, or ctr-remote's, wrote.",
    ),
    click.option("--no-optimize", is_flag=True, help="Run nothing: convert only."),
    click.option(
        "--snapshotter",
        default="overlayfs",
        show_default=True,
        metavar="NAME",
        help="containerd's snapshotter for layers that no snapshotter has yet.",
    ),
)

_OF_A_RUN = (
    *("entrypoint", "args", "env", "env_file", "cwd", "user", "mounts", "terminal", "interactive"),
    *("period_s", "line", "until_signal", "host_network", "cni", "cni_plugin_conf_dir", "cni_plugin_dir"),
    *("dns_nameservers", "dns_search_domains", "dns_options", "add_hosts", "snapshotter"),
)
"""Parameters that mean nothing where nothing is run."""


def sample_options(command: Command) -> Command:
    """Give a command all options of a sample run; the functions below read what they come to."""
    for option in reversed((*_WORKLOAD, *_END, *_NETWORK, *_RECORD)):
        command = option(command)
    return command


def check_combination(values: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other.

    Raises:
        ConfigError: they do.
    """
    lists = {
        "--record-in": values["record_in"] is not None,
        "--prefetch-list": values["prefetch_list"] is not None,
        "--no-optimize": values["no_optimize"],
    }
    given = [name for name, there in lists.items() if there]
    if {"--record-in", "--prefetch-list"} <= set(given):
        raise ConfigError("--record-in and --prefetch-list exclude each other: each says what goes to the front")
    if given and values["record_out"] is not None:
        raise ConfigError(f"--record-out has nothing to write down: with {given[0]} nothing is run")
    if given and (idle := _given(*_OF_A_RUN)):
        raise ConfigError(f"{idle[0]} is for a run, and with {given[0]} nothing is run; leave one of them out")
    if values["host_network"] and values["cni"]:
        raise ConfigError("--net-host and --cni exclude each other")
    if not values["cni"] and (idle := _given("cni_plugin_conf_dir", "cni_plugin_dir")):
        raise ConfigError(f"{idle[0]} is for --cni, which is not given")
    if values["line"] == "":
        raise ConfigError("--wait-on-line: the text is empty; say which one the program writes when it is ready")
    if values["terminal"] and not values["interactive"]:
        raise ConfigError("--terminal needs -i: a program with a terminal reads from it")
    if values["terminal"] and values["until_signal"]:
        raise ConfigError(
            "--terminal and --wait-on-signal exclude each other: with a terminal Ctrl-C is the program's; end it, or use "
            "--period or --wait-on-line"
        )


def _given(*names: str) -> list[str]:
    """Which of these parameters somebody gave, as the command line writes them."""
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    ]


def overrides_of(values: Mapping[str, Any]) -> Overrides:
    """What is to be run instead of what the image says.

    Raises:
        ConfigError: an option cannot be understood.
    """
    env_file = values["env_file"]
    from_file = parse_env_file(env_file.name, _text_of(env_file), os.environ) if env_file is not None else []
    check_env(values["env"])
    return Overrides(
        entrypoint=None if values["entrypoint"] is None else parse_words("--entrypoint", values["entrypoint"]),
        args=None if values["args"] is None else parse_words("--args", values["args"]),
        env=(*from_file, *values["env"]),
        cwd=values["cwd"] or "",
        user=values["user"] or "",
        mounts=tuple(map(parse_mount, values["mounts"])),
        terminal=values["terminal"],
    )


def watching_of(values: Mapping[str, Any]) -> Watching:
    """How long it is watched."""
    until_signal: bool = values["until_signal"]
    return Watching(None if until_signal else values["period_s"], values["line"] or "", until_signal)


def names_of(values: Mapping[str, Any]) -> Names:
    """What the container is told about names. Raises ConfigError."""
    keys = ("dns_search_domains", "dns_options", "add_hosts")
    servers = values["dns_nameservers"]
    own = _servers() if servers is None else parse_list(servers)
    return parse_names(own, *(parse_list(values[key]) for key in keys))


def _servers() -> tuple[str, ...]:
    """This machine's name servers that can be reached from elsewhere; systemd-resolved keeps them beside its own address."""
    for path in _RESOLV_CONFS:
        with suppress(OSError):
            if servers := servers_in(path.read_text("utf-8", "replace")):
                return servers
    return ()


def network_of(values: Mapping[str, Any]) -> tuple[Network | None, tuple[Path, ...]]:
    """The network that plugins connect, if any, and where the plugins are. Raises ConfigError."""
    if not values["cni"]:
        return None, ()
    folder = values["cni_plugin_dir"]
    return first_network(values["cni_plugin_conf_dir"]), PLUGIN_DIRS if folder is None else (folder,)


def streams_of(values: Mapping[str, Any]) -> Streams:
    """What the program's streams are. Its words go to standard error, since standard output is for the result."""
    shown = 2
    if values["terminal"]:
        check_terminal(0)
        shown = next(fd for fd in (1, 2, 0) if os.isatty(fd))
    return Streams(0 if values["interactive"] else None, shown, 2)


def _text_of(file: Any) -> str:
    try:
        return str(file.read())
    except UnicodeDecodeError:
        raise ConfigError(f"--env-file {file.name} is not text in UTF-8") from None
