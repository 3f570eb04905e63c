import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.config import LogConfig
from snapshotter.daemon import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook)
    yield
    root.handlers[:], root.level, sys.excepthook = before
    logging.captureWarnings(capture=False)


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("snapshotter.layer", level, __file__, 1, message, (), None)


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("GET https://cdn.example/blob?X-Amz-Signature=abc123&x=1", "x=1", "abc123"),
        ("https://host/p?sig=topsecret", "https://host/p?sig=***", "topsecret"),
        ("Authorization: Bearer eyJhbGciOi.x.y end", "end", "eyJ"),
        ("{'authorization': 'Basic dXNlcjpwdw=='}", "***", "dXNl"),
        ("proxy http://user:hunter2@proxy.example:3128/", "proxy.example:3128", "hunter2"),
    ],
)
def test_secrets_do_not_reach_a_log(text: str, kept: str, gone: str) -> None:
    for line in (logs.TextLines(journal=False).format(record(text)), logs.JsonLines().format(record(text))):
        assert kept in line
        assert gone not in line


def test_addresses_with_ports_and_digests_stay_readable() -> None:
    text = "http://127.0.0.1:5000/v2/a/blobs/sha256:abc of localhost:5000/a@sha256:abc is missing"
    assert logs.without_secrets(text) == text


def test_json_lines_are_one_object_each_whatever_the_message() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        entry = record("name \udcff\nsecond", logging.ERROR)
        entry.exc_info = sys.exc_info()
    line = logs.JsonLines().format(entry)
    assert "\n" not in line
    values = json.loads(line)
    assert values["level"] == "error"
    assert values["logger"] == "snapshotter.layer"
    assert values["time"].endswith("Z")
    assert "ValueError" in values["error"]


def test_every_line_for_the_journal_has_its_priority() -> None:
    assert logs.TextLines(journal=True).format(record("a\nb", logging.ERROR)) == "<3>snapshotter.layer: a\n<3>b"


def test_the_journal_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        status = os.fstat(file.fileno())
        assert logs._is_journal(file.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert not logs._is_journal(file.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not logs._is_journal(file.fileno(), {})


def test_libraries_are_quiet_unless_everything_is_wanted() -> None:
    logs.set_up(LogConfig(level="info"))
    assert not logging.getLogger("grpc").isEnabledFor(logging.INFO)
    assert logging.getLogger("snapshotter").isEnabledFor(logging.INFO)
    logs.set_up(LogConfig(level="debug"))
    assert logging.getLogger("grpc").isEnabledFor(logging.DEBUG)


def test_a_crash_in_a_thread_and_of_the_daemon_are_lines_in_the_log() -> None:
    code = (
        "import threading\n"
        "from snapshotter.config import LogConfig\n"
        "from snapshotter.daemon import logs\n"
        "logs.set_up(LogConfig(format='json'))\n"
        "def crash(): raise RuntimeError('in thread')\n"
        "t = threading.Thread(target=crash, name='grpc_7'); t.start(); t.join()\n"
        "raise RuntimeError('in main')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, second = map(json.loads, done.stderr.splitlines())
    assert "grpc_7" in first["message"]
    assert "in thread" in first["error"]
    assert second["level"] == "critical"
    assert "in main" in second["error"]
