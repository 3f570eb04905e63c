"""The socket: private, replaced when stale, never stolen."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snapshotter.errors import ConfigError, StoreLocked
from snapshotter.service.server import SocketServer, build_server
from tests.service.node import Client, Node, scratch


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder with a short path."""
    with scratch() as folder:
        yield folder


def serve(address: Path) -> SocketServer:
    """A started server without services but health."""
    server = build_server(address, [], max_workers=2)
    server.start()
    return server


def health_of(address: Path) -> int:
    """What grpc.health.v1 says of the whole server."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        return int(answer.status)


@pytest.mark.parametrize("mask", [0, 0o777])
def test_directory_and_socket_are_their_owners_alone(top: Path, mask: int) -> None:
    address = top / "run/s.sock"
    before = os.umask(mask)
    try:
        server = serve(address)
    finally:
        os.umask(before)
    try:
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        assert os.listdir(address.parent) == ["s.sock"]
        assert health_of(address) == health_pb2.HealthCheckResponse.SERVING
    finally:
        server.stop(0)
    assert os.listdir(address.parent) == []


def test_the_mode_of_a_directory_that_is_there_stays(top: Path) -> None:
    top.chmod(0o755)
    serve(top / "s").stop(0)
    assert stat.S_IMODE(top.stat().st_mode) == 0o755


def test_a_socket_nobody_listens_at_is_replaced(top: Path) -> None:
    address = top / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(address))
    server = serve(address)
    try:
        assert health_of(address) == health_pb2.HealthCheckResponse.SERVING
    finally:
        server.stop(0)


def test_a_socket_somebody_listens_at_is_left_alone(top: Path) -> None:
    server = serve(top / "s")
    try:
        with pytest.raises(StoreLocked, match="already"):
            build_server(top / "s", [], max_workers=2)
        assert health_of(top / "s") == health_pb2.HealthCheckResponse.SERVING
    finally:
        server.stop(0)


def test_a_file_at_the_address_is_not_removed(top: Path) -> None:
    (top / "s").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        build_server(top / "s", [], max_workers=2)
    assert (top / "s").read_text() == "precious"
    assert os.listdir(top) == ["s"]


def test_an_address_too_long_for_a_socket_is_refused(top: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        build_server(top / ("x" * 120), [], max_workers=2)


def test_a_message_larger_than_grpcs_default_is_taken(node: Node) -> None:
    labels = {f"key {number}": "v" * 4000 for number in range(1500)}
    client: Client = node.client
    client.prepare("big", labels=labels)
    assert len(node.snapshots.stat("big").labels) == 1500
