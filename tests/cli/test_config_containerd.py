"""What `config containerd` prints and does at a terminal of eighty columns, without a containerd that runs."""

import json
import tomllib
from pathlib import Path

import pytest

from snapshotter.cli.main import main
from snapshotter.containerd import finding

Captured = pytest.CaptureFixture[str]
LINES = ("1.6", "1.7.15", "1.7", "2.0", "2.1.4", "v2.3")


@pytest.fixture(autouse=True)
def no_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without containerd, and without a program or files of it."""
    monkeypatch.setattr(finding, "SOCKETS", (tmp_path / "absent.sock",))
    monkeypatch.setattr(finding, "DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ours.toml").write_text("")
    monkeypatch.setenv("ESTARGZ_CONFIG", str(tmp_path / "ours.toml"))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["config", "containerd", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("line", LINES)
def test_what_is_printed_is_a_file_for_that_line(line: str, capsys: Captured) -> None:
    assert run("--for", line) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# For containerd {line.removeprefix('v')}.\n")
    # A path is not broken.
    assert max(len(one) for one in out.splitlines() if "/pytest-" not in one) <= 80
    tables = tomllib.loads(out)
    assert tables["proxy_plugins"]["estargz"]["address"] == "/run/estargz/snapshotter.sock"
    assert ("exports" in tables["proxy_plugins"]["estargz"]) == (line not in ("1.6", "1.7.15"))


def test_socket_root_and_name_are_those_that_were_configured(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "c.toml").write_text('root = "/data/e"\nrun_dir = "/run/e"\n')
    assert run("--for", "2.1", "--transfer", "--config", str(tmp_path / "c.toml"), "--snapshotter", "lazy") == 0
    proxy = tomllib.loads(capsys.readouterr().out)["proxy_plugins"]["lazy"]
    assert proxy["address"] == "/run/e/snapshotter.sock"
    assert proxy["exports"] == {"root": "/data/e", "enable_remote_snapshot_annotations": "true"}


def test_programs_get_the_same(capsys: Captured) -> None:
    assert run("--for", "2.0", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert tomllib.loads(printed["toml"])["version"] == 3
    assert printed["steps"]
    assert printed["version"] == "2.0"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--write", "--revert"), 2, "opposites"),
        (("--dry-run",), 2, "give one of them"),
        (("--for", "new"), 2, "give the numbers"),
        (("--for", "1.5"), 63, "too old"),
        (("--for", "2.0", "--transfer"), 2, "leave --transfer out"),
        (("--for", "2.0", "--snapshotter", "a.b"), 2, "letters, digits"),
        ((), 62, "no containerd on this node"),
        (("--write",), 62, "no containerd on this node"),
        (("--revert",), 62, "no containerd on this node"),
        (("--containerd", "/nowhere.sock"), 62, "no containerd at /nowhere.sock"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], code: int, words: str, capsys: Captured) -> None:
    assert run(*arguments) == code
    assert words in capsys.readouterr().err


def test_an_image_that_is_built_is_configured_without_a_containerd_that_runs(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "config.toml"
    file.write_text("version = 3\n")
    assert run("--for", "2.1", "--containerd-config", str(file), "--write", "--dry-run") == 0
    assert "+imports" in capsys.readouterr().out
    assert file.read_text() == "version = 3\n"
    assert run("--for", "2.1", "--containerd-config", str(file), "--write") == 0
    out = capsys.readouterr().out
    assert f"changed {file}\n" in out
    assert "not checked" in out
    assert run("--containerd-config", str(file), "--revert") == 0
    assert file.read_text() == "version = 3\n"
    assert run("--containerd-config", str(file), "--revert") == 0
    assert "nothing of ours" in capsys.readouterr().out


def test_programs_are_told_what_was_changed(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "config.toml"
    assert run("--for", "1.6", "--containerd-config", str(file), "--write", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert str(file) in answer["changed"]
    assert answer["checked"] is False
