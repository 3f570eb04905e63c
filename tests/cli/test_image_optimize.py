"""Options of `snapshotter image optimize` that contradict each other, and where its record goes; runs are in integration/."""

import os
from pathlib import Path

import pytest

from snapshotter.cli.image_optimize import optimize_command
from snapshotter.cli.record_out import record_out
from snapshotter.errors import ConfigError
from snapshotter.image.optimize.record_file import Recorded, parse_record

PLACES = ("localhost:1/app:1", "localhost:1/app:2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--no-optimize", "--args", "[]"), "--args is for a run, and with --no-optimize nothing is run"),
        (("--no-optimize", "--period", "10"), "--period is for a run"),
        (("--no-optimize", "--env", "A=b"), "--env is for a run"),
        (("--no-optimize", "--wait-on-line", "up"), "--wait-on-line is for a run"),
        (("--no-optimize", "--wait-on-signal"), "--wait-on-signal is for a run"),
        (("--prefetch-list", "/dev/null", "--entrypoint", "[]"), "--entrypoint is for a run, and with --prefetch-list"),
        (("--record-in", "/dev/null", "--net-host"), "--net-host is for a run, and with --record-in"),
        (("--cni-plugin-conf-dir", "/etc/cni/net.d"), "--cni-plugin-conf-dir is for --cni"),
        (("--cni-plugin-dir", "/opt"), "--cni-plugin-dir is for --cni"),
        (("--wait-on-line", ""), "--wait-on-line: the text is empty"),
        (("--env", "=secret"), "--env: the variable's name is missing"),
        (("--env", ""), "--env: the variable's name is missing"),
        (("--record-out", "/"), "--record-out /: Is a directory; name a file"),
        (("--record-out", "/dev/null/file"), "--record-out /dev/null/file: Not a directory"),
    ],
)
def test_options_that_would_do_nothing_are_refused_before_anything_runs(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        optimize_command.main([*words, *PLACES], standalone_mode=False)
    assert str(caught.value).startswith(told)
    assert "secret" not in str(caught.value)


def test_record_that_is_written_last_counts_and_one_that_is_not_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("of another run\n" * 100)
    with record_out(path) as write:
        assert path.stat().st_size == 1500
        write([Recorded("one"), Recorded("two")])
        assert [one.path for one in parse_record(path.read_bytes())] == ["one", "two"]
        write([Recorded("one", "", 0)])
    assert parse_record(path.read_bytes()) == [Recorded("one", "", 0)]
    with record_out(path):
        pass
    assert path.stat().st_size > 0
    new = tmp_path / "new"
    with record_out(new):
        assert new.exists()
    assert not new.exists()


def test_record_that_goes_into_a_pipe_is_written_once() -> None:
    reader, writer = os.pipe()
    try:
        with record_out(Path(f"/dev/fd/{writer}")) as write:
            write([Recorded("one"), Recorded("two")])
            write([Recorded("one", "", 0)])
        assert parse_record(os.read(reader, 1000)) == [Recorded("one", "", 0)]
    finally:
        os.close(reader)
        os.close(writer)
