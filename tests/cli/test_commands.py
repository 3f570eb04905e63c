"""The commands against a real gRPC server on a unix socket, run as `main` runs them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.cli.main import main
from snapshotter.daemon.ending import TORN_DOWN
from snapshotter.errors import SnapshotterError, StoreFull
from snapshotter.service.control_views import BadFileView, LayerState, LayerView, MissingFileView, UserView
from tests.cli.fake_node import DIGESTS, IMAGE, FakeNode, serving

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ESTARGZ_ADDRESS", str(tmp_path / "s"))
    monkeypatch.setattr("snapshotter.config.DEFAULT_PATH", tmp_path / "absent.toml")
    fake = FakeNode()
    with serving(fake, tmp_path / "s"):
        yield fake


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def run_json(capsys: Captured, *arguments: str) -> object:
    assert run(*arguments, "--json") == 0
    value: object = json.loads(capsys.readouterr().out)
    return value


COMMANDS = [
    ("status",),
    ("layers",),
    ("cache", "usage"),
    ("cache", "list"),
    ("cache", "list", "--files"),
    ("top", "--once", "--interval", "0.1"),
    ("cache", "prune"),
    ("cache", "verify"),
    ("teardown",),
    ("version",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_answers_within_eighty_columns_and_in_json(
    node: FakeNode, capsys: Captured, command: tuple[str, ...]
) -> None:
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert isinstance(run_json(capsys, *command), dict | list)


def test_status_says_what_an_admin_asks(node: FakeNode, capsys: Captured) -> None:
    assert run("status") == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "pid 4242",
        "fuse: this kernel has no EROFS",
        "9, 1 failed",
        "11.8 MiB on demand, 1.0 GiB prefetched, 0 B in background",
        "5.0 GiB of 20.0 GiB, 100 GiB free",
        "1 reads, 2 wrong digests",
        "! layer sha256:00 could not be mounted again",
    ):
        assert words in out
    answer = run_json(capsys, "status")
    assert isinstance(answer, dict)
    assert answer["fetched_demand"] == 12_345_678
    assert len(answer["problems"]) == 1


def test_layers_show_the_share_that_is_here_and_why_not_lazy(node: FakeNode, capsys: Captured) -> None:
    assert run("layers") == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert re.search(r"00abababab\w+ +80\.0 MiB +100% +complete", text)
    assert re.search(r"01abababab\w+ +1\.0 GiB +1% +lazy", text)
    assert re.search(r"02abababab\w+ +- +- +ordinary +not-a-lazy-format:", text)
    assert "[bold]gone[/bold]" in text
    assert "\\x1b[31mevil" in text
    heads = [line for line in lines if "LAYER" in line]
    assert len({line.index("STATE") for line in heads}) == 1


def test_layers_in_json_carry_whole_digests_and_sizes_in_bytes(node: FakeNode, capsys: Captured) -> None:
    rows = run_json(capsys, "layers")
    assert isinstance(rows, list)
    assert rows[1] == {
        "image": IMAGE,
        "digest": DIGESTS[1],
        "toc_digest": DIGESTS[6],
        "state": "lazy",
        "reason": "",
        "detail": "",
        "size": 1 << 30,
        "present": 3 << 20,
        "blob_size": 0,
        "number": 2,
    }


def test_thousands_of_layers_come_in_batches(node: FakeNode, capsys: Captured) -> None:
    node.rows = tuple(LayerView(IMAGE, DIGESTS[0], LayerState.LAZY, number=n, detail="x" * 2000) for n in range(3000))
    rows = run_json(capsys, "layers")
    assert isinstance(rows, list)
    assert [row["number"] for row in rows] == list(range(3000))


def test_no_layers_and_empty_cache_are_said_in_words(node: FakeNode, capsys: Captured) -> None:
    node.rows, node.files, node.images = (), (), ()
    assert run("layers") == 0
    assert run("cache", "list", "--files") == 0
    assert capsys.readouterr().out == "No image has been pulled through this daemon.\nThe cache is empty.\n"
    node.unreferenced = 0
    assert run("cache", "list") == 0
    assert capsys.readouterr().out == "The cache is empty, and no image has been pulled through this daemon.\n"


def test_cache_list_shows_each_image_and_what_none_names(node: FakeNode, capsys: Captured) -> None:
    assert run("cache", "list") == 0
    text = capsys.readouterr().out
    assert re.search(r"3 +0 +0 +1\.0 MiB +1\.0 MiB +100% +\d+ d +a\.example/small:1\n", text)
    assert re.search(r"2 +1 +1 +1\.0 GiB +3\.0 MiB +1% +\d+ \w+ +registry", text)
    assert re.search(r"0 +4 +0 +- +- +- +- +z\.example", text)
    assert " ".join(text.split()).endswith(" 1.0 MiB not named by any image")


@pytest.mark.parametrize(
    ("order", "images"),
    [("image", "arz"), ("size", "raz"), ("here", "raz"), ("share", "arz"), ("last-use", "raz")],
)
def test_cache_list_is_sorted_as_asked(node: FakeNode, capsys: Captured, order: str, images: str) -> None:
    answer = run_json(capsys, "cache", "list", "--sort", order)
    assert isinstance(answer, dict)
    assert "".join(row["image"][0] for row in answer["images"]) == images
    assert answer["unnamed"] == 1 << 20


def test_prune_passes_its_options_on(node: FakeNode, capsys: Captured) -> None:
    assert run("cache", "prune", "--all", "--keep", "2GiB") == 0
    assert node.calls == [("prune", (True, 2 << 30))]
    assert capsys.readouterr().out == "deleted 3 files, 300 B\n"


def test_verify_names_bad_files_and_exits_with_the_code_of_wrong_digests(node: FakeNode, capsys: Captured) -> None:
    node.bad = (BadFileView("node", DIGESTS[2], "its bytes have another digest"),)
    assert run("cache", "verify") == 11
    captured = capsys.readouterr()
    assert "its bytes have another digest" in captured.out
    assert "1 cached files were not what their names say" in captured.err
    assert "missing" not in captured.out + captured.err


def test_verify_names_missing_files_and_exits_with_the_same_code(node: FakeNode, capsys: Captured) -> None:
    node.missing = (MissingFileView("node", DIGESTS[3]), MissingFileView("other", DIGESTS[4]))
    assert run("cache", "verify") == 11
    captured = capsys.readouterr()
    lines = " ".join(captured.out.split())
    assert f"{DIGESTS[3]} (node): missing" in lines
    assert f"{DIGESTS[4]} (other): missing" in lines
    assert "2 cached files were missing and are fetched again when needed" in captured.err
    assert "were not what their names say" not in captured.err


def test_verify_in_json_has_damaged_and_missing_files_of_all_messages(node: FakeNode, capsys: Captured) -> None:
    node.bad = (BadFileView("node", DIGESTS[2], "its bytes have another digest"),)
    node.missing = (MissingFileView("node", DIGESTS[3]), MissingFileView("other", DIGESTS[4]))
    assert run("cache", "verify", "--json") == 11
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [file["name"] for file in answer["bad"]] == [DIGESTS[2]]
    assert answer["missing"] == [{"domain": "node", "name": DIGESTS[3]}, {"domain": "other", "name": DIGESTS[4]}]
    assert (answer["files_checked"], answer["done"]) == (3, True)
    assert "1 cached files were not what their names say" in captured.err
    assert "2 cached files were missing" in captured.err


def test_teardown_refused_names_the_containers_and_exits_busy(node: FakeNode, capsys: Captured) -> None:
    node.users = (UserView("ab" * 32, "k8s.io", "/run/x/rootfs", (1, 2, 3, 4, 5, 6)), UserView("mine", "", "/m", ()))
    assert run("teardown") == 42
    captured = capsys.readouterr()
    assert re.search(r"abababababab +k8s\.io +1, 2, 3, 4, 5, … +/run/x/rootfs", captured.out)
    assert "--force" in captured.err
    assert run("teardown", "--force") == 0
    assert node.calls == [("teardown", False), ("teardown", True)]
    assert "unmounted /run/estargz/fuse" in capsys.readouterr().out


def test_an_error_of_the_daemon_keeps_its_sentence_and_its_exit_code(node: FakeNode, capsys: Captured) -> None:
    node.failure = StoreFull("no room on /var/lib/estargz: free some")
    for command in COMMANDS:
        assert run(*command) == 31
        assert capsys.readouterr().err == "snapshotter: no room on /var/lib/estargz: free some\n"


def test_a_bug_in_the_daemon_is_an_error_and_the_next_call_works(
    node: FakeNode, capsys: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    node.failure = RuntimeError("oops")
    assert run("status") == 1
    assert "its log has the details" in capsys.readouterr().err
    assert "oops" in caplog.text
    node.failure = None
    assert run("status") == 0


def test_bytes_that_are_no_text_reach_neither_terminal_nor_wire_raw(node: FakeNode, capsys: Captured) -> None:
    node.rows = (LayerView(os.fsdecode(b"name-\xff\n"), DIGESTS[0], LayerState.LAZY),)
    assert run("layers") == 0
    assert "name-\\udcff\\n" in capsys.readouterr().out


def test_error_does_not_move_the_cursor_of_a_terminal(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["image", "convert", "oci:/nowhere/\x1b[2J:x", "oci:/nowhere/at-all:x"])
    assert "/nowhere/\\x1b[2J is no OCI layout" in capsys.readouterr().err


def test_version_without_a_daemon_is_no_error(tmp_path: Path, capsys: Captured) -> None:
    assert run("version", "--address", str(tmp_path / "none")) == 0
    assert "no daemon at" in " ".join(capsys.readouterr().out.split())


def test_help_lists_every_exit_code_of_the_error_tree(capsys: Captured) -> None:
    def codes(cls: type[SnapshotterError]) -> set[int]:
        return {cls.exit_code}.union(*(codes(child) for child in cls.__subclasses__()))

    assert run("--help") == 0
    table = capsys.readouterr().out.partition("Exit codes:")[2]
    listed = {int(code) for code in re.findall(r"(?:^ +| {3,})(\d+)  ", table, re.MULTILINE)}
    assert codes(SnapshotterError) | {0, TORN_DOWN, 130, 141} <= listed


def test_config_default_is_checked_as_right_and_a_mistake_is_not(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("config", "default") == 0
    (tmp_path / "c.toml").write_text(capsys.readouterr().out)
    assert run("config", "check", str(tmp_path / "c.toml")) == 0
    assert "c.toml is right" in capsys.readouterr().out
    (tmp_path / "c.toml").write_text("[cache]\nqouta = 1")
    assert run("config", "check", str(tmp_path / "c.toml")) == 2
    assert "did you mean quota?" in capsys.readouterr().err
    monkeypatch.setattr("snapshotter.config.DEFAULT_PATH", tmp_path / "absent.toml")
    assert run("config", "check") == 0
    assert "the defaults are used" in capsys.readouterr().out


def test_wrong_usage_exits_two(capsys: Captured) -> None:
    for arguments in (["nonsense"], ["cache", "prune", "--keep", "5x"], ["serve", "--plane", "paper"], ["status", "x"]):
        assert run(*arguments) == 2
    assert "must be a size" in capsys.readouterr().err


def test_help_loads_no_heavy_library() -> None:
    """Completion and scripts call the command often; gRPC, httpx, trio and pyfuse3 cost a fifth of a second."""
    code = (
        "import sys; sys.argv = ['snapshotter', '--help']\n"
        "from snapshotter.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sorted({'grpc', 'httpx', 'trio', 'pyfuse3', 'rich', 'google'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Commands" in done.stdout


def test_python_dash_m_is_the_command_and_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "snapshotter", "config", "default"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
