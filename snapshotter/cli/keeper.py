"""`snapshotter keeper`: the process that holds the FUSE connection while daemons come and go."""

# ruff: noqa: PLC0415 (imported where it is needed)

from pathlib import Path

import click

from snapshotter.cli.options import AbsolutePath, config_option
from snapshotter.config import load, override


@click.command()
@config_option
@click.option("--run-dir", type=AbsolutePath(), metavar="DIR", help="Where the daemon's mounts and its socket live.")
def keeper(config_path: Path | None, run_dir: Path | None) -> None:
    """Keep the connection to the kernel while no daemon has it.

    A daemon that finds no keeper starts one: this command is for service managers, which give it a control group of its
    own, so that it outlives whatever ends the daemon's. It ends when there is nothing to keep, and at once if there
    is a keeper already.
    """
    config = override(load(config_path), run_dir=run_dir)
    from snapshotter.daemon.keeping import keep

    click.echo(f"Process {keep(config)} is the keeper already.")
