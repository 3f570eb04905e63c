"""`snapshotter serve`: the daemon."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

from pathlib import Path

import click

from snapshotter.cli.options import AbsolutePath, address_option, config_option
from snapshotter.config import load, override


@click.command()
@config_option
@click.option("--root", type=AbsolutePath(), metavar="DIR", help="Where snapshots, fetched files and the state live.")
@click.option("--run-dir", type=AbsolutePath(), metavar="DIR", help="Where mounts and the socket live; ≤ 20 bytes.")
@address_option
@click.option("--plane", type=click.Choice(["auto", "fuse", "erofs"]), help="How a layer becomes a directory.")
@click.option(
    "--standby", is_flag=True, help="Wait with everything loaded while another daemon serves, then take over."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least important messages.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people, or JSON for programs.")
def serve(
    config_path: Path | None,
    root: Path | None,
    run_dir: Path | None,
    address: Path | None,
    plane: str | None,
    standby: bool,  # noqa: FBT001 (click gives it by name)
    log_level: str | None,
    log_format: str | None,
) -> int:
    """Run the daemon that containerd talks to.

    Options outrank the configuration file. SIGTERM and SIGINT end the daemon and leave everything in place: mounts
    stay, a keeper process holds the connection to the kernel, and readers wait for the next start, which goes on where this
    one ended. `snapshotter teardown` takes everything away.
    """
    config = override(load(config_path), root=root, run_dir=run_dir, address=address, plane=plane)
    config = override(config, table="log", level=log_level, format=log_format)
    from snapshotter.daemon.main import run

    return run(config, standby=standby)
