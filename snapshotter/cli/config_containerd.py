"""`snapshotter config containerd`: print what containerd must be told, put it in place, take it out."""

# ruff: noqa: PLC0415 (imported where it is needed: no other command waits for gRPC)

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapshotter import config as configuration
from snapshotter.cli import show
from snapshotter.cli.options import AbsolutePath, config_option, json_option
from snapshotter.errors import ConfigError

if TYPE_CHECKING:
    from snapshotter.containerd.drop_in import Outcome
    from snapshotter.containerd.finding import Found
    from snapshotter.containerd.lines import Wanted
    from snapshotter.containerd.settings import Settings

NAMES = "a name begins with a letter and has letters, digits, - and _ only"
BY_US = "disable_snapshot_annotations = false"
"""What an earlier --write without --transfer left is no obstacle to one with it."""
LAST_PATCH = 999
"""`--for 1.7` means the newest of that line."""


@click.command(short_help="Print, write or take out what containerd must be told.")
@click.option("--write", is_flag=True, help="Put it in place, with backups; containerd's program checks it.")
@click.option("--revert", is_flag=True, help="Take out what --write put in; later edits stay.")
@click.option("--dry-run", is_flag=True, help="With --write or --revert: show the changes, make none.")
@click.option("--transfer", is_flag=True, help="containerd 2.1 and later: let its transfer service pull.")
@click.option("--snapshotter", "name", default="estargz", show_default=True, metavar="NAME", help="Name of the plugin.")
@click.option(
    "--containerd",
    "socket",
    type=AbsolutePath(),
    metavar="SOCKET",
    help="containerd's socket; else what the configuration says, or where distributions put it.",
)
@click.option(
    "--containerd-config", "file", type=AbsolutePath(), metavar="FILE", help="containerd's configuration file."
)
@click.option("--for", "line", metavar="VERSION", help="For this containerd, whatever runs here: 1.6, 1.7.20, 2.1 …")
@config_option
@json_option
def containerd(
    *,
    write: bool,
    revert: bool,
    dry_run: bool,
    transfer: bool,
    name: str,
    socket: Path | None,
    file: Path | None,
    line: str | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Print the configuration that makes the containerd of this node pull lazily.

    It finds the containerd that runs, asks its version and reads its configuration. What it prints is right for that
    version, says what each line is for, and what else there is to do.

    --write puts it in place: a drop-in file beside containerd's own file, which imports it. containerd 1.x cannot take the
    keys about pulls from a drop-in without losing other settings; there they go into the file that has its
    section about CRI. Each changed file is kept beside it, its name ending in .before-estargz-snapshotter.
    """
    from snapshotter.containerd import drop_in

    if write and revert:
        raise ConfigError("--write and --revert are opposites: give one")
    if dry_run and not (write or revert):
        raise ConfigError("--dry-run shows what --write or --revert would change: give one of them")
    _check_name(name)
    ours = configuration.load(config_path)
    if socket is None and os.path.exists(ours.containerd.address):
        socket = ours.containerd.address
    found = _found(socket, file, line, write=write or revert, must_run=not revert)
    if revert:
        _report(drop_in.revert(found, dry_run=dry_run), as_json=as_json, dry_run=dry_run, undone=True)
        return
    settings = _settings(found, ours) if found.binary is not None and line is None else None
    wanted = _wanted(found, ours, settings, name, transfer=transfer)
    if write:
        outcome = drop_in.write(found, wanted, dry_run=dry_run)
        steps = _steps(found, wanted, settings, outcome.restart, config_path)
        _report(outcome, as_json=as_json, dry_run=dry_run, steps=steps)
        return
    _print(found, wanted, settings, ours, config_path, as_json=as_json, line=line)


def _check_name(name: str) -> None:
    from snapshotter.containerd.lines import is_plugin_name

    if not is_plugin_name(name):
        raise ConfigError(f"--snapshotter {name}: {NAMES}")


def _found(socket: Path | None, file: Path | None, line: str | None, *, write: bool, must_run: bool) -> "Found":
    from snapshotter.containerd import finding
    from snapshotter.containerd.introspection import parse_version
    from snapshotter.errors import ContainerdUnreachable

    version = None
    if line is not None:
        version = parse_version(line)
        if version is None:
            raise ConfigError(f"--for {line}: give the numbers of a containerd, such as 1.6 or 2.1.4")
        if line.count(".") == 1:
            version = version._replace(patch=LAST_PATCH)
        found = finding.absent(version, socket, file)
        # What is printed for another node has nothing to do with the file of this one.
        return found if write else replace(found, config_path=file)
    try:
        return finding.find(socket, file)
    except ContainerdUnreachable:
        if must_run or (file is None and not finding.DEFAULT_CONFIG.exists()):
            raise
        return finding.absent(None, socket, file)


def _settings(found: "Found", ours: configuration.Config) -> "Settings":
    from snapshotter.containerd.effective import effective
    from snapshotter.containerd.settings import read_settings

    return read_settings(effective(found), found.version, ours.socket)


def _wanted(
    found: "Found", ours: configuration.Config, settings: "Settings | None", name: str, *, transfer: bool
) -> "Wanted":
    from snapshotter.containerd.lines import Wanted
    from snapshotter.containerd.settings import DEFAULT_ROOT
    from snapshotter.containerd.site import file_version

    because = settings.own_puller if settings else ""
    if transfer and because and because != BY_US:
        raise ConfigError(
            f"{found.config_path}: {because} keeps pods' pulls away from the transfer service: leave --transfer out"
        )
    return Wanted(
        name,
        ours.socket,
        ours.root,
        found.version,
        file_version(found),
        transfer,
        settings.containerd_root if settings else DEFAULT_ROOT,
        (settings.unpack_config or ()) if settings else (),
    )


def _steps(
    found: "Found", wanted: "Wanted", settings: "Settings | None", restart: str, config_path: Path | None
) -> list[str]:
    from snapshotter.containerd.advice import advice

    our_config = str(config_path or configuration.DEFAULT_PATH)
    return advice(wanted, flavour=found.flavour, restart=restart, settings=settings, our_config=our_config)


def _print(
    found: "Found",
    wanted: "Wanted",
    settings: "Settings | None",
    ours: configuration.Config,
    config_path: Path | None,
    *,
    as_json: bool,
    line: str | None,
) -> None:
    from snapshotter.containerd import lines
    from snapshotter.containerd.settings import complaints
    from snapshotter.containerd.site import site_of

    site = site_of(found)
    parts = [*lines.plugin(wanted), *lines.pulls(wanted)]
    steps = _steps(found, wanted, settings, site.restart, config_path)
    wrong = complaints(settings, found.version, ours.socket, ours.root) if settings else []
    text = lines.document(parts, version=wanted.file_version if wanted.file_version > 1 else None)
    if as_json:
        show.print_json(
            {
                "version": line or str(found.version),
                "address": None if line else str(found.address),
                "pid": found.pid,
                "config_path": str(found.config_path) if found.config_path else None,
                "flavour": found.flavour,
                "main": str(site.main),
                "drop_in": str(site.drop_in) if site.drop_in else None,
                "toml": text,
                "steps": steps,
                "complaints": [{"severity": one.severity, "what": one.what, "advice": one.advice} for one in wrong],
            }
        )
        return
    if line is None:
        where = f"reads {found.config_path}" if found.config_path else "runs on its defaults"
        heading = [f"For containerd {found.version} at {found.address}, which {where}."]
    else:
        heading = [f"For containerd {line.removeprefix('v')}."]
    heading.append(f"--write puts it into {site.main}; by hand, let each table and key stand there only once.")
    click.echo(lines.commented(*heading))
    click.echo(text)
    click.echo(lines.commented("Then:", *(f"* {step}" for step in steps)), nl=False)
    if settings:
        now = [f"* {one.what}" for one in wrong] or ["* all is as it should be"]
        click.echo("\n" + lines.commented("As it is now:", *now), nl=False)


def _report(
    outcome: "Outcome", *, as_json: bool, dry_run: bool, undone: bool = False, steps: list[str] | None = None
) -> None:
    if as_json:
        show.print_json(
            {
                "changed": [] if dry_run else [str(change.path) for change in outcome.changes],
                "would_change": [str(change.path) for change in outcome.changes] if dry_run else [],
                "kept": list(outcome.kept),
                "checked": outcome.checked,
                "steps": steps or [],
                "restart": outcome.restart,
            }
        )
        return
    from snapshotter.containerd.record import BACKUP

    if dry_run:
        for change in outcome.changes:
            if change.path.suffix in (BACKUP, ".json"):
                click.echo(f"would {'delete' if change.after is None else 'write'} {change.path}")
            else:
                click.echo("".join(_difference(change.path, change.before, change.after)), nl=False)
    if not outcome.changes:
        click.echo(f"{outcome.main}: {'nothing of ours is in it' if undone else 'all is there already'}")
        return
    if dry_run:
        return
    for change in outcome.changes:
        verb = "deleted" if change.after is None else "made" if change.before is None else "changed"
        click.echo(f"{verb:<8}{change.path}")
    for key in outcome.kept:
        click.echo(f"kept    {key}, which was changed since")
    if outcome.checked:
        click.echo("containerd's own program has read the result and takes it.")
    else:
        click.echo("The result is not checked: containerd's own program is not at hand, or reads it only later.")
    _next(outcome.restart, steps)


def _next(restart: str, steps: list[str] | None) -> None:
    from snapshotter.containerd.lines import wrapped

    click.echo("")
    for step in steps or [f"Restart containerd: {restart}. Running containers go on."]:
        click.echo(wrapped(f"* {step}"))


def _difference(path: Path, before: bytes | None, after: bytes | None) -> Any:
    def text(data: bytes | None) -> list[str]:
        lines = (data or b"").decode("utf-8", "replace").splitlines(keepends=True)
        return [line if line.endswith("\n") else line + "\n" for line in lines]

    old = str(path) if before is not None else "/dev/null"
    new = str(path) if after is not None else "/dev/null"
    return difflib.unified_diff(text(before), text(after), old, new)
