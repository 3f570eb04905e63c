"""`snapshotter config`: print the default configuration, check a file; what containerd must be told."""

from pathlib import Path

import click

from snapshotter import config as configuration
from snapshotter.cli.config_containerd import containerd
from snapshotter.cli.options import AbsolutePath


@click.group()
def config() -> None:
    """Print or check a configuration, this program's or containerd's."""


@config.command(short_help="Print every key with its default and meaning.")
def default() -> None:
    """Print a configuration file with every key, its default and its meaning."""
    click.echo(configuration.dump(configuration.Config()), nl=False)


@config.command(short_help="Check a file.")
@click.argument("file", type=AbsolutePath(), required=False, envvar="ESTARGZ_CONFIG")
def check(file: Path | None) -> None:
    """Check FILE, or what the other commands read: $ESTARGZ_CONFIG, else /etc/estargz/config.toml.

    Exit code 2 and a sentence if it is wrong.
    """
    checked = configuration.load(file)
    name = file or configuration.DEFAULT_PATH
    if file is None and not name.exists():
        click.echo(f"{name} does not exist: the defaults are used")
        return
    click.echo(f"{name} is right: root {checked.root}, run_dir {checked.run_dir}, socket {checked.socket}")


config.add_command(containerd)
