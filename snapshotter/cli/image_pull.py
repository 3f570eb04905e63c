"""`snapshotter image pull`: speaks with containerd and the registry; our daemon is asked by containerd."""

import platform
from dataclasses import replace
from pathlib import Path

import click
import grpc
import trio

from snapshotter.cli.heeding import heeding
from snapshotter.cli.options import (
    AbsolutePath,
    config_option,
    containerd_option,
    json_option,
    namespace_option,
    parse_platform,
)
from snapshotter.cli.pull_view import as_json as pulled_json
from snapshotter.cli.pull_view import watching
from snapshotter.cli.show import print_json
from snapshotter.config import RegistryConfig, load
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client, checked_namespace
from snapshotter.containerd.introspection import check_containerd
from snapshotter.containerd.leases import new_id
from snapshotter.image.pull.pulling import Pulled, PullRequest, pull
from snapshotter.image.pull.rows import Watcher
from snapshotter.registry.client import Registry
from snapshotter.registry.platform import host_platform
from snapshotter.registry.reference import parse_reference

STATES = """\b
States of a layer:
  lazy      mounted; content comes when it is needed
  unpacked  fetched whole and unpacked by containerd; the last column says why
  present   on the node before
"""


@click.command("pull", epilog=STATES)
@click.argument("ref", metavar="REF")
@click.option(
    "--platform", "platform_text", metavar="OS/ARCH[/VARIANT]", help="Which image of an index; else this host's."
)
@namespace_option("for the image")
@containerd_option
@click.option(
    "--snapshotter",
    default="estargz",
    show_default=True,
    metavar="NAME",
    help="What containerd's configuration calls the snapshotter.",
)
@click.option("--plain-http", is_flag=True, help="Speak http with the registry of REF.")
@config_option
@click.option(
    "--address",
    type=AbsolutePath(),
    envvar="ESTARGZ_ADDRESS",
    show_envvar=True,
    metavar="SOCKET",
    help="Unix socket of our daemon, asked why a layer is not lazy; otherwise the one that containerd calls.",
)
@json_option
def pull_command(
    *,
    ref: str,
    platform_text: str | None,
    namespace: str,
    containerd_address: Path | None,
    snapshotter: str,
    plain_http: bool,
    config_path: Path | None,
    address: Path | None,
    as_json: bool,
) -> None:
    """Pull an image into containerd: layers that can be lazy are mounted, others fetched and unpacked.

    Afterwards `ctr run --snapshotter=NAME REF …` works, and in the namespace k8s.io so do pods.
    """
    reference = parse_reference(ref)
    wanted = parse_platform(platform_text) if platform_text else host_platform(platform.machine())
    config = load(config_path)
    registry = config.registry
    if plain_http:
        registry = replace(registry, plain_http=(*registry.plain_http, reference.host))
    client_of = (containerd_address or config.containerd.address, checked_namespace(namespace))
    with connected(client_of[0]) as channel:
        plugin = check_containerd(channel, client_of[0], snapshotter)[0]
        told = plugin.exports.get("address")
        request = PullRequest(
            reference=reference,
            platform=wanted,
            demanded=platform_text is not None,
            snapshotter=plugin,
            daemon=address or (Path(told) if told else None),
            allow_unverified=config.lazy.allow_unverified,
        )
        with watching(quiet=as_json) as watcher:
            pulled = trio.run(_pull, registry, channel, client_of, request, watcher)
    if pulled is None:
        click.echo("snapshotter: interrupted; containerd has no new image", err=True)
        raise click.Abort
    if as_json:
        print_json(pulled_json(pulled))
    else:
        click.echo(str(reference) if reference.digest else f"{reference}@{pulled.digest}")


async def _pull(
    config: RegistryConfig, channel: grpc.Channel, client_of: tuple[Path, str], request: PullRequest, watcher: Watcher
) -> Pulled | None:
    """Pull; None if a signal came before the image had its name."""

    async def work() -> Pulled:
        async with Registry(config) as registry:
            return await pull(registry, Client(channel, *client_of, new_id()), request, watcher)

    return await heeding(work)
