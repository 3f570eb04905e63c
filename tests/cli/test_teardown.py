"""`snapshotter teardown` does the daemon's work itself only where surely none runs, and deletes nothing of others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from snapshotter.cli.main import main
from snapshotter.store.lock import RootLock

Captured = pytest.CaptureFixture[str]
Teardown = Callable[[Path], int]


@pytest.fixture
def teardown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teardown:
    (tmp_path / "c.toml").write_text(f'root = "{tmp_path / "root"}"\nrun_dir = "/run/ed-no-such"\n')

    def run(address: Path) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["teardown", "--config", str(tmp_path / "c.toml"), "--address", str(address)])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def test_a_file_named_by_mistake_is_neither_a_daemon_nor_deleted(
    tmp_path: Path, teardown: Teardown, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("x")
    assert teardown(tmp_path / "file") == 60
    assert (tmp_path / "file").read_text() == "x"
    assert "is not a socket" in capsys.readouterr().err


def test_the_socket_of_another_service_is_left_to_it(tmp_path: Path, teardown: Teardown, capsys: Captured) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    try:
        assert teardown(tmp_path / "s") == 60
        assert (tmp_path / "s").is_socket()
    finally:
        server.stop(None).wait()
    assert "another service" in capsys.readouterr().err


def test_without_permission_the_advice_is_to_become_root(
    tmp_path: Path, teardown: Teardown, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, _address: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert teardown(tmp_path / "s") == 60
    assert "run this command as root" in capsys.readouterr().err


def test_a_daemon_that_listens_elsewhere_is_named(tmp_path: Path, teardown: Teardown, capsys: Captured) -> None:
    with RootLock(tmp_path / "root"):
        assert teardown(tmp_path / "s") == 60
    err = capsys.readouterr().err
    assert "one runs elsewhere" in err
    assert "in use by process" in err
    assert "--address" in err


def test_with_no_daemon_at_all_there_is_nothing_to_do(tmp_path: Path, teardown: Teardown, capsys: Captured) -> None:
    assert teardown(tmp_path / "s") == 0
    assert capsys.readouterr().out == "Nothing was mounted.\n"
