"""Which file `config check` reads, and what it says when it cannot."""

from pathlib import Path

import pytest

from snapshotter.cli.main import main

Captured = pytest.CaptureFixture[str]


def check(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_without_a_file_the_one_that_the_other_commands_read_is_checked(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[cache]\nqouta = 1")
    monkeypatch.setenv("ESTARGZ_CONFIG", str(tmp_path / "c.toml"))
    assert check() == 2
    assert "did you mean quota?" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_said_with_what_to_do(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "c.toml").touch()
    monkeypatch.setattr("os.access", lambda *_arguments, **_options: False)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert check(str(tmp_path / "c.toml")) == 2
    assert capsys.readouterr().err == (
        f"snapshotter: {tmp_path / 'c.toml'}: no permission to read it: run this command as root (sudo)\n"
    )
