"""`snapshotter image pull` as people run it, against a containerd in memory: what it prints, and how it ends."""

import json
import os
import signal
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from snapshotter.cli.main import main
from snapshotter.cli.pull_view import Screen
from snapshotter.image.pull.rows import LayerRow, LayerState
from snapshotter.service.control_views import LayerState as DaemonsWord
from snapshotter.service.control_views import LayerView
from tests.cli.fake_node import FakeNode, serving
from tests.image.pulls import TARS, World, an_image, digests, world

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("CONTAINERD_NAMESPACE", "ESTARGZ_ADDRESS", "ESTARGZ_CONFIG", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("snapshotter.config.DEFAULT_PATH", tmp_path / "absent.toml")
    with world(tmp_path) as made:
        monkeypatch.setenv("CONTAINERD_ADDRESS", str(made.address))
        yield made


def run(there: World, *options: str, suffix: str = ":v1") -> int:
    with pytest.raises(SystemExit) as ended:
        main(["image", "pull", "--plain-http", *options, there.registry.reference(suffix)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_pull_prints_the_digest_and_says_of_each_layer_what_became_of_it(there: World, capsys: Captured) -> None:
    image = an_image(lazy=(0,), tars=TARS[:2])
    image.push(there.registry)
    there.node.lazy = {digests(image)[0]}
    assert run(there) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{there.registry.reference(':v1')}@{image.manifest()['digest']}\n"
    first, second = captured.err.splitlines()
    short = [digest[7:19] for digest in digests(image)]
    size = image.document["layers"][1]["size"]
    assert first.startswith(f"layer 1/2: {short[0]} {image.document['layers'][0]['size']} B lazy in ")
    assert second.startswith(f"layer 2/2: {short[1]} {size} B unpacked in ")
    assert second.endswith(f"{size} B fetched")


def test_reference_with_a_digest_is_printed_once(there: World, capsys: Captured) -> None:
    image = an_image()
    image.push(there.registry)
    pinned = f"@{image.manifest()['digest']}"
    assert run(there, suffix=pinned) == 0
    assert capsys.readouterr().out == f"{there.registry.reference(pinned)}\n"
    assert there.node.images.keys() == {there.registry.reference(pinned)}


def test_json_has_each_layer_with_sizes_in_bytes(there: World, capsys: Captured) -> None:
    image = an_image(lazy=(0,), tars=TARS[:2])
    image.push(there.registry)
    there.node.lazy = {digests(image)[0]}
    assert run(there, "--json", "--platform", "linux/amd64") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert captured.err == ""
    assert answer.pop("seconds") > 0
    layers = answer.pop("layers")
    assert answer == {
        "image": there.registry.reference(":v1"),
        "digest": image.manifest()["digest"],
        "platform": "linux/amd64",
    }
    assert [layer["digest"] for layer in layers] == digests(image)
    assert [(layer["state"], layer["bytes_fetched"] == layer["size"]) for layer in layers] == [
        ("lazy", False),
        ("unpacked", True),
    ]
    assert layers[0].keys() == {
        "digest", "chain_id", "state", "reason", "detail", "size", "bytes_fetched", "seconds",
    }  # fmt: skip


@pytest.mark.parametrize("named", ["by containerd", "by --address"])
def test_reason_of_a_layer_is_the_daemons_word(there: World, tmp_path: Path, capsys: Captured, named: str) -> None:
    image = an_image(tars=TARS[:2])
    image.push(there.registry)
    reference = there.registry.reference(":v1")
    words = {"state": DaemonsWord.ORDINARY, "reason": "no-toc-digest", "detail": "convert\x1b the image"}
    rows = tuple(LayerView(reference, digest, **words) for digest in digests(image))  # type: ignore[arg-type]
    options = ["--address", str(tmp_path / "d")] if named == "by --address" else []
    if not options:
        there.node.plugins[0].exports["address"] = str(tmp_path / "d")
    with serving(FakeNode(rows=rows), tmp_path / "d"):
        assert run(there, *options) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith("no-toc-digest: convert\\x1b the image") for line in lines] == [True, True]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--namespace", "no good"), 2, "namespace 'no good': containerd takes letters and digits"),
        (("--namespace", "x" * 77), 2, "at most 76"),
        (("--platform", "linux"), 2, "write OS/ARCH or OS/ARCH/VARIANT"),
        (("--platform", "linux/s390x"), 10, "alone, not for linux/s390x"),
        (("--containerd", "/nowhere/c.sock"), 62, "no containerd at /nowhere/c.sock"),
        (("--snapshotter", "other"), 63, "has no snapshotter other (it has estargz)"),
        (("--config", "/nowhere/config.toml"), 2, "no such configuration file"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_a_code(
    there: World, capsys: Captured, options: tuple[str, ...], code: int, words: str
) -> None:
    an_image().push(there.registry)
    assert run(there, *options) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    there.assert_nothing()


def test_image_that_is_not_there_and_registry_that_refuses_have_codes_of_their_own(
    there: World, capsys: Captured
) -> None:
    assert run(there, suffix=":absent") == 23
    there.registry.users = {"somebody": "secret"}
    assert run(there) == 22
    assert len(capsys.readouterr().err.splitlines()) == 2
    there.assert_nothing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("call", ["Snapshots.Prepare", "Diff.Apply"])
def test_signal_leaves_nothing_and_says_so(there: World, capsys: Captured, number: int, call: str) -> None:
    an_image().push(there.registry)

    def fate(name: str, _number: int) -> None:
        if name == call:
            there.node.at_call = None
            os.kill(os.getpid(), number)

    there.node.at_call = fate
    before = signal.getsignal(number)
    assert run(there) == 130
    assert signal.getsignal(number) is before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "snapshotter: interrupted; containerd has no new image"
    there.assert_nothing()


def rows(count: int) -> list[LayerRow]:
    """Layers of an image that is being pulled: half of them have ended."""
    made = [LayerRow(f"sha256:{number:064x}", "", 900 << 20) for number in range(count)]
    for row in made[: count // 2]:
        row.state, row.began_s, row.ended_s = LayerState.LAZY, 0.0, 100.0
    row = made[count // 2]
    row.state, row.received, row.fetched, row.began_s = LayerState.DOWNLOADING, 899 << 20, 899 << 20, 0.0
    row.reason, row.detail = "unsupported-media-type", "a sentence that is \x1b[31m longer than any terminal " * 3
    return made


@pytest.mark.parametrize("width", [80, 120])
def test_rows_of_the_live_view_are_lines_of_any_terminal(width: int) -> None:
    console = Console(file=StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    screen = Screen(console)
    screen.begin(rows(6))
    with console.capture() as captured:
        console.print(screen.frame())
    lines = captured.get().splitlines()
    assert len(lines) == 7
    assert max(map(len, lines)) <= width
    assert "lazy" in lines[1]
    assert "downloading 99%" in lines[4]
    assert "unsupported" in lines[4]
    with console.capture() as captured:
        console.print(screen.conclusion())
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "6 layers: 3 lazy, 1 downloading, 2 waiting; 899 MiB fetched" in text


def test_low_terminal_shows_what_goes_on_and_counts_the_rest() -> None:
    console = Console(file=StringIO(), width=80, height=12, force_terminal=True, color_system=None)
    screen = Screen(console)
    screen.begin(rows(60))
    screen.note("something to know")
    with console.capture() as captured:
        console.print(screen.frame())
    lines = captured.get().splitlines()
    assert len(lines) < 12
    assert "downloading" in lines[1]
    assert "more of 60, 30 done" in lines[-2]
    assert lines[-1].rstrip() == "something to know"
