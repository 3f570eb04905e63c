"""Groups of commands whose modules are imported when they are called: `--help` and completion do not wait for gRPC."""

# ruff: noqa: ARG002 (the arguments of the group's methods are click's)

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click


class Place(NamedTuple):
    """Where a command is: a module of this package, its name in it, and the line that its group says of it."""

    module: str
    attribute: str
    short_help: str


class LazyGroup(click.Group):
    """A group that knows names and one-liners of its commands by itself."""

    def __init__(self, *args: Any, places: Mapping[str, Place], **attributes: Any) -> None:
        """`places` are the commands by name, in the order of the help text."""
        super().__init__(*args, **attributes)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help text."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        place = self._places.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"snapshotter.cli.{place.module}"), place.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What `--help` of the group lists, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.short_help) for name, place in self._places.items()])
