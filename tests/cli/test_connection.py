"""Whatever stands where the daemon should: a sentence that says what to do, and exit code 60."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from snapshotter.cli.main import main
from tests.cli.fake_node import FakeNode, serving

Captured = pytest.CaptureFixture[str]


def complaint(capsys: Captured, address: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["status", "--address", str(address), *more])
    assert ended.value.code == 60
    err = capsys.readouterr().err
    assert err.startswith("snapshotter: ")
    assert err.count("\n") == 1
    return err


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def test_no_socket_says_how_to_start_the_daemon(tmp_path: Path, capsys: Captured) -> None:
    err = complaint(capsys, tmp_path / "none")
    assert "no daemon at" in err
    assert "systemctl start estargz-snapshotter" in err


def test_a_file_is_not_a_socket(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a socket" in complaint(capsys, tmp_path / "file")


def test_a_socket_nobody_listens_on_is_a_daemon_that_ended(tmp_path: Path, capsys: Captured) -> None:
    with listening(tmp_path / "s"):
        pass
    assert "running containers wait for the next one" in complaint(capsys, tmp_path / "s")


def test_no_permission_says_become_root(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert "run this command as root" in complaint(capsys, tmp_path / "s")


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path, capsys: Captured) -> None:
    assert "--address" in complaint(capsys, tmp_path / ("x" * 120))


def test_another_grpc_service_is_recognised(tmp_path: Path, capsys: Captured) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    try:
        assert "another service" in complaint(capsys, tmp_path / "s")
    finally:
        server.stop(None).wait()


def test_a_service_that_speaks_something_else_is_recognised(tmp_path: Path, capsys: Captured) -> None:
    with listening(tmp_path / "s") as listener:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    connection, _address = listener.accept()
                    with connection, suppress(ConnectionError):
                        connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        err = complaint(capsys, tmp_path / "s", "--timeout", "5")
        assert "another service" in err or "did not answer in time" in err
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_daemon_that_does_not_answer_is_a_timeout(tmp_path: Path, capsys: Captured) -> None:
    stuck = threading.Event()

    class Stuck(FakeNode):
        def _called(self, name: str, argument: object = None) -> None:
            stuck.wait(30)

    with serving(Stuck(), tmp_path / "s"):
        err = complaint(capsys, tmp_path / "s", "--timeout", "0.3")
        stuck.set()
    assert "did not answer in time" in err
    assert "--timeout" in err


def test_a_path_with_signs_of_an_address_is_still_a_path(tmp_path: Path, capsys: Captured) -> None:
    os.mkdir(tmp_path / "a%2fb ?")
    address = tmp_path / "a%2fb ?" / "s"
    with serving_on_link(FakeNode(), address), pytest.raises(SystemExit) as ended:
        main(["status", "--address", str(address)])
    assert ended.value.code == 0


@contextmanager
def serving_on_link(node: FakeNode, address: Path) -> Iterator[None]:
    plain = address.parent.parent / "plain"
    with serving(node, plain):
        address.symlink_to(plain)
        yield


def test_the_socket_comes_from_the_configuration(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "c.toml").write_text(f'address = "{tmp_path / "s"}"')
    with serving(FakeNode(), tmp_path / "s"), pytest.raises(SystemExit) as ended:
        main(["status", "--config", str(tmp_path / "c.toml")])
    assert ended.value.code == 0
