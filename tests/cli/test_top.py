"""`snapshotter top`: what its picture says, and how it behaves in a terminal, a pipe and without a daemon."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from snapshotter.api import control_pb2 as pb
from snapshotter.cli.main import main
from snapshotter.cli.top_picture import Rates, picture, rates
from snapshotter.errors import FailedPrecondition
from snapshotter.service.control import to_message
from tests.cli.fake_node import BUSY, IMAGE, FakeNode, a_wait, an_activity, serving

Captured = pytest.CaptureFixture[str]
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
PATIENCE_S = 60.0
IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def message(**changes: Any) -> pb.ActivityResponse:
    return to_message(pb.ActivityResponse, an_activity(**changes))


def drawn(answer: pb.ActivityResponse, width: int, height: int | None, **more: Any) -> list[str]:
    console = Console(width=width, height=height or 25, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(picture(answer, Rates(3 << 19, 0, 2048, 50), width, height, **more))
    return captured.get().splitlines()


def test_rates_are_made_of_two_answers_of_one_daemon() -> None:
    assert rates(message(), message(**BUSY)) == Rates(3 << 19, 0.0, 2048.0, 50.0)
    assert rates(message(), message(**{**BUSY, "started_at_ns": 2})) is None
    assert rates(message(), message()) is None


def test_the_picture_says_who_waits_for_what_and_how_busy_the_wire_is() -> None:
    text = "\n".join(drawn(message(**BUSY), 120, 40))
    for words in (
        "erofs plane, up ",
        "demand 1.5 MiB/s   prefetch 0 B/s   background 2.0 KiB/s",
        "demand 2   prefetch 0   background 0   FUSE 50/s",
        "5.0 GiB of 20.0 GiB",
        "2 reads, 1 open; the longest 13.2 s",
        "! registry registry.example.org failed last: no answer",
        "1 file is on the way and nobody is seen to wait",
    ):
        assert words in text
    assert re.search(
        r" 13\.2 s shop/web-7f9c/nginx +4243 python3 +read +…?.*/libpython3\.11\.so\.1\.0 00abababab", text
    )
    assert re.search(r"  0\.4 s abababababab +4244 python3 +open +/bin/sh \(or equal file\) ", text)
    assert IMAGE[-20:] in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (50, 10), (200, 60)])
def test_the_picture_fits_the_terminal_and_counts_what_it_leaves_out(width: int, height: int) -> None:
    waits = tuple(a_wait(pid=number, path=f"/deep/{'directory/' * 20}{number}") for number in range(1, 101))
    lines = drawn(message(**{**BUSY, "waits": waits}), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 12)
    shown = [line for line in lines if " s " in line and "read " in line and "…" in line]
    (left_out,) = [line for line in lines if " more" in line]
    assert len(shown) + int(re.findall(r"\d+", left_out)[0]) == 100


def test_a_long_path_keeps_its_end() -> None:
    lines = drawn(message(waits=(a_wait(path="/a/" + "b" * 200 + "/libpython3.so"),)), 80, 24)
    assert any("…" in line and "/libpython3.so" in line for line in lines)


def test_nobody_waits_is_said_and_so_is_that_processes_cannot_be_seen() -> None:
    assert "waiting   nobody waits" in drawn(message(), 80, 24)
    unseen = message(processes_seen=False, reads_waiting=1, waits=(a_wait(pid=0),))
    assert any("/proc does not answer in time" in line for line in drawn(unseen, 80, 24))
    assert "! it has gone" in drawn(message(), 80, 24, trouble="it has gone")


def test_an_image_cannot_steer_the_terminal() -> None:
    evil = "\x1b[31m[bold]evil\n"
    wait = a_wait(path=evil, process=evil, container_name=evil, image=evil)
    lines = drawn(message(waits=(wait,)), 200, 24)
    assert "\x1b" not in "".join(lines)
    assert sum("evil" in line for line in lines) == 1


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("ESTARGZ_ADDRESS", str(tmp_path / "s"))
    monkeypatch.setattr("snapshotter.config.DEFAULT_PATH", tmp_path / "absent.toml")
    fake = FakeNode()
    with serving(fake, tmp_path / "s"):
        yield fake


def test_once_in_json_has_everything_and_the_rates(node: FakeNode, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once", "--json", "--interval", "0.1"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rates"] == {"demand": 3 << 19, "prefetch": 0.0, "background": 2048.0, "fuse": 50.0}
    assert [(wait["kind"], wait["pid"]) for wait in answer["waits"]] == [("read", 4243), ("lookup", 4244), ("read", 0)]
    assert answer["away"] == [{"host": "registry.example.org", "failure": "no answer"}]


def test_without_a_terminal_it_prints_one_picture(node: FakeNode, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--interval", "0.1"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "4243" in out
    assert node.calls == [("activity", None)] * 2


def test_json_without_once_is_a_line_for_each_picture(node: FakeNode, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "snapshotter", "top", "--json", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert lines[0]["rates"]["fuse"] == 50.0
    assert lines[2]["rates"] is None  # two answers of the same moment


@dataclass
class Terminal:
    """The command in a terminal of its own."""

    process: subprocess.Popen[bytes]
    screen: int
    keyboard: int
    mode: list[Any]
    seen: bytes = b""

    def until(self, words: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 65536)

    def ended(self) -> int:
        """The exit code, once the screen and the keyboard are as they were."""
        self.until(LEAVE)
        code = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self.keyboard) == self.mode
        return code


@pytest.fixture
def terminal(node: FakeNode) -> Iterator[Terminal]:
    screen, keyboard = pty.openpty()
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    mode = termios.tcgetattr(keyboard)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, sys.executable, "-m", "snapshotter", "top", "--interval", "0.2"],
        stdin=keyboard, stdout=keyboard, stderr=keyboard, env=environment | {"TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    yield Terminal(process, screen, keyboard, mode)
    process.kill()
    process.wait()
    os.close(screen)
    os.close(keyboard)


def test_q_ends_it_and_the_terminal_is_as_it_was(terminal: Terminal) -> None:
    terminal.until(ENTER)
    terminal.until(b"4243")
    os.write(terminal.screen, b"q")
    assert terminal.ended() == 0


def test_ctrl_c_ends_it_and_ctrl_z_does_not_stop_it_on_the_other_screen(terminal: Terminal) -> None:
    terminal.until(b"4243")
    os.write(terminal.screen, b"\x1a\x03")
    assert terminal.ended() == 0


def test_a_signal_ends_it_and_the_terminal_is_as_it_was(terminal: Terminal) -> None:
    terminal.until(b"4243")
    terminal.process.terminate()
    assert terminal.ended() == 128 + signal.SIGTERM


def test_another_size_of_the_terminal_is_drawn_at_once(terminal: Terminal) -> None:
    terminal.until(b"4243")
    assert b"IMAGE" not in terminal.seen
    fcntl.ioctl(terminal.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    terminal.until(b"IMAGE")
    os.write(terminal.screen, b"q")
    assert terminal.ended() == 0


def test_a_daemon_that_goes_away_is_said_in_the_picture_and_found_again(terminal: Terminal, node: FakeNode) -> None:
    terminal.until(b"4243")
    socket = Path(os.environ["ESTARGZ_ADDRESS"])
    socket.rename(socket.with_suffix(".away"))
    terminal.until(b"no daemon at")
    socket.with_suffix(".away").rename(socket)
    terminal.seen = b""
    terminal.until(b"daemon  ")
    os.write(terminal.screen, b"q")
    assert terminal.ended() == 0


def test_no_daemon_is_an_error_as_with_every_command(tmp_path: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once", "--address", str(tmp_path / "none")])
    assert ended.value.code == 60
    assert "no daemon at" in capsys.readouterr().err


def test_an_error_of_the_daemon_is_told(node: FakeNode, capsys: Captured) -> None:
    node.failure = FailedPrecondition("not now")
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once"])
    assert ended.value.code == 42
    assert "not now" in capsys.readouterr().err
