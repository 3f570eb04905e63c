"""What the demonstration says when it cannot go on, and how its result looks."""

import io
import os
import subprocess
from pathlib import Path

import grpc
import pytest
from rich.console import Console

from integration import demo

Captured = pytest.CaptureFixture[str]


class Refused(grpc.RpcError):
    def details(self) -> str:
        return 'exec: "/no/such" [red]: no such file'


def test_containerd_s_words_are_shown_without_a_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise Refused

    monkeypatch.setattr(demo, "_demonstrate", refuse)
    assert demo.main(["--command", "/no/such"]) == 1
    assert 'exec: "/no/such" [red]: no such file\n' in capsys.readouterr().err


def test_an_image_that_cannot_be_copied_is_named_with_what_to_check(capsys: Captured) -> None:
    assert demo.main(["--image", "127.0.0.1:1/no/such:1"]) == 1
    err = capsys.readouterr().err
    assert "127.0.0.1:1/no/such:1 cannot be copied: check its name" in err
    assert "connection refused" in err


def test_a_quote_that_is_not_closed_is_wrong_usage(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--command", "sh -c 'x"])
    assert ended.value.code == 2
    assert "No closing quotation" in capsys.readouterr().err


def test_each_run_is_one_row_in_eighty_columns() -> None:
    runs = [demo.Run(how, 123.45, 123.45, 112_200_000, 112_200_000, "ready") for how in ("overlayfs", "estargz")]
    out = io.StringIO()
    Console(file=out, width=80).print(demo._table(runs, "sample image", ("true",)))
    for row in ("overlayfs (whole)", "estargz (lazy)"):
        assert any(row in line and "112.2 MB" in line for line in out.getvalue().splitlines())


def test_shares_are_of_the_image_that_the_title_measures() -> None:
    runs = [
        demo.Run("overlayfs", 3.0, 3.2, 100_000_000, 100_000_000, "ready"),
        demo.Run("estargz", 0.2, 0.9, 11_000_000, 110_000_000, "ready"),
    ]
    out = io.StringIO()
    Console(file=out, width=80).print(demo._table(runs, "sample image", ("true",)))
    assert "sample image: 100.0 MB of layers" in out.getvalue()
    assert any("estargz (lazy)" in line and " 11.0% " in line for line in out.getvalue().splitlines())


def test_make_hands_a_command_on_with_its_quotes(tmp_path: Path) -> None:
    """Stands in for setup and Python, so that nothing is started."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = """python3 -c 'print("a b")'"""
    argv = ["make", "--no-print-directory", "-o", "setup", f"BIN={tmp_path}", "demo", f"COMMAND={command}"]
    root = Path(demo.__file__).parent.parent
    done = subprocess.run(argv, cwd=root, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "integration.demo", "--command", command]
