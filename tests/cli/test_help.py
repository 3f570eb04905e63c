"""What `--help` shows to people at a terminal of eighty columns."""

from collections.abc import Iterator

import click
import pytest

from snapshotter.cli.main import COMMANDS, main, snapshotter

Captured = pytest.CaptureFixture[str]


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in every_command(snapshotter)], ids=" ".join)
def test_help_of_every_command_is_whole_and_fits_eighty_columns(
    path: tuple[str, ...], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*path, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\\b" not in out
    assert "..." not in out.partition("Commands:")[2]


def test_help_of_layers_explains_each_state_on_a_line_of_its_own(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["layers", "--help"])
    starts = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"lazy", "complete", "failed", "ordinary"} <= starts


def test_the_top_says_of_groups_what_they_say_themselves() -> None:
    for path, command in every_command(snapshotter):
        if len(path) == 1 and isinstance(command, click.Group):
            assert command.help == COMMANDS[path[0]].short_help
