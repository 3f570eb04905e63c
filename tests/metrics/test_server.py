"""The HTTP server for scrapes, on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection

import pytest

from snapshotter.errors import ConfigError, StoreError
from snapshotter.metrics import server as module
from snapshotter.metrics.server import CONNECTIONS_MAX, MetricsServer

TIMEOUT_S = 30.0


def render(accept: str) -> tuple[str, bytes]:
    return "text/plain; version=0.0.4", f"figures for {accept}\n".encode()


@pytest.fixture
def start() -> Iterator[Callable[..., MetricsServer]]:
    made: list[MetricsServer] = []

    def started(address: str = "127.0.0.1:0", answer: Callable[[str], tuple[str, bytes]] = render) -> MetricsServer:
        made.append(MetricsServer(address, answer))
        made[-1].start()
        return made[-1]

    yield started
    for one in made:
        one.stop()


def get(port: int, path: str = "/metrics", method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, headers={"accept": "anything"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def answering() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def test_metrics_are_at_their_path_and_a_word_about_it_elsewhere(start: Callable[..., MetricsServer]) -> None:
    port = start().port
    assert get(port) == (200, b"figures for anything\n")
    assert get(port, "/metrics?name=x") == (200, b"figures for anything\n")
    assert get(port, "/") == (200, module.PAGE)
    assert get(port, "/metrics/deep")[0] == 404
    assert get(port, "/../etc/passwd")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "NONSENSE"])
def test_nothing_but_get_is_answered(start: Callable[..., MetricsServer], method: str) -> None:
    assert get(start().port, method=method)[0] == 501


def test_rubbish_ends_one_connection_and_no_more(start: Callable[..., MetricsServer]) -> None:
    port = start().port
    for rubbish in (b"\x16\x03\x01\x02\x00" * 10 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET " + b"x" * 70_000 + b"\r\n\r\n"):
        with connect(port) as client:
            client.sendall(rubbish)
            client.shutdown(socket.SHUT_WR)
            try:
                while client.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert get(port)[0] == 200


def test_hanging_scrapers_do_not_keep_others_out(start: Callable[..., MetricsServer]) -> None:
    port = start().port
    hanging = [connect(port) for _ in range(3 * CONNECTIONS_MAX)]
    try:
        for client in hanging[::2]:
            client.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert get(port)[0] == 200
        # The oldest were closed for the others, and their threads end.
        assert hanging[0].recv(1) == b""
        deadline = time.monotonic() + TIMEOUT_S
        while answering() > CONNECTIONS_MAX:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for client in hanging:
            client.close()


def test_a_request_that_drips_is_ended(start: Callable[..., MetricsServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    port = start().port
    with connect(port) as client:
        ended = time.monotonic() + TIMEOUT_S
        client.settimeout(0.05)
        while time.monotonic() < ended:
            try:
                client.sendall(b"G")
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it was let go on")
    assert get(port)[0] == 200


def test_a_scraper_that_does_not_read_holds_nobody_up(start: Callable[..., MetricsServer]) -> None:
    port = start(answer=lambda _: ("text/plain", b"x" * (16 << 20))).port
    with connect(port) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert client.recv(1) == b"H"
        assert len(get(port)[1]) == 16 << 20


def test_what_goes_wrong_is_answered_in_words(start: Callable[..., MetricsServer]) -> None:
    def broken(_: str) -> tuple[str, bytes]:
        raise StoreError("state.db cannot be read")

    assert get(start(answer=broken).port) == (500, b"state.db cannot be read\n")


def test_a_fault_ends_one_scrape_and_is_logged(
    start: Callable[..., MetricsServer], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> tuple[str, bytes]:
        raise ZeroDivisionError

    port = start(answer=broken).port
    for _ in range(2):
        with connect(port) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(1) == b""
    assert get(port, "/")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_an_address_in_use_is_said(start: Callable[..., MetricsServer]) -> None:
    port = start().port
    with pytest.raises(ConfigError, match=rf"metrics.address 127.0.0.1:{port} .*in use"):
        MetricsServer(f"127.0.0.1:{port}", render)


@pytest.mark.parametrize("address", ["192.0.2.1:9717", "[2001:db8::1]:9717"])
def test_an_address_of_another_machine_is_said(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be listened at"):
        MetricsServer(address, render)


def test_without_a_host_every_address_answers(start: Callable[..., MetricsServer]) -> None:
    port = start(":0").port
    assert get(port)[0] == 200
    if socket.has_dualstack_ipv6():
        assert get(port, host="::1")[0] == 200


def test_ipv6_addresses_stand_in_brackets(start: Callable[..., MetricsServer]) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    assert get(start("[::1]:0").port, host="::1")[0] == 200


def test_after_stop_nobody_listens_and_nothing_is_held(start: Callable[..., MetricsServer]) -> None:
    server = start()
    with connect(server.port) as client:
        port = server.port
        server.stop()
        with suppress(ConnectionResetError):  # if it had not been accepted yet
            assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    server.stop()
