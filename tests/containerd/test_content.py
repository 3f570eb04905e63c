"""Manifests from containerd's content store: what it gives, and that no fault of it is ours."""

import socket
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from snapshotter.api.content_pb2 import ReadContentRequest, ReadContentResponse
from snapshotter.api.content_pb2_grpc import ContentServicer, add_ContentServicer_to_server
from snapshotter.containerd import content as containerd
from snapshotter.containerd.content import ContainerdContent

DIGEST = f"sha256:{'0' * 64}"


class Content(ContentServicer):
    """One blob in one namespace, sent in two parts."""

    def Read(self, request: ReadContentRequest, context: grpc.ServicerContext) -> Iterator[ReadContentResponse]:
        if (request.digest, dict(context.invocation_metadata())["containerd-namespace"]) != (DIGEST, "k8s.io"):
            context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        yield ReadContentResponse(data=b"two ")
        yield ReadContentResponse(data=b"parts")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers does so however other work holds the machine up."""
    monkeypatch.setattr(containerd, "TIMEOUT_S", 60)


@contextmanager
def content_at(address: Path) -> Iterator[ContainerdContent]:
    """What reads from a server with one blob."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    add_ContentServicer_to_server(Content(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{address}")
    server.start()
    content = ContainerdContent(address)
    try:
        yield content
    finally:
        content.close()
        server.stop(None).wait()


def test_a_manifest_is_read_in_its_namespace_only(tmp_path: Path) -> None:
    with content_at(tmp_path / "s") as content:
        assert content.manifest("k8s.io", DIGEST) == b"two parts"
        assert content.manifest("other", DIGEST) is None


def test_more_than_a_manifest_may_have_is_left_to_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containerd, "MANIFEST_MAX", 8)
    with content_at(tmp_path / "s") as content:
        assert content.manifest("k8s.io", DIGEST) is None


def test_a_containerd_that_never_speaks_costs_no_more_than_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containerd, "TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        content = ContainerdContent(tmp_path / "s")
        assert content.manifest("k8s.io", DIGEST) is None
        content.close()


@pytest.mark.parametrize("name", ["absent", "x" * 300])
def test_an_address_where_nothing_can_be_is_no_fault(tmp_path: Path, name: str) -> None:
    assert ContainerdContent(tmp_path / name).manifest("k8s.io", DIGEST) is None
