"""TLS as the node trusts it, quiet logs, and a line of some length."""

import logging
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryError, RegistryUnreachable
from snapshotter.registry.client import Registry
from snapshotter.registry.faults import fault_of
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.reference import parse_reference
from snapshotter.registry.retry import RetryPolicy, Transient
from snapshotter.registry.wire import HEADERS_MAX
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.relay import Relay
from tests.registry.memory import Known

DATA = bytes(range(256)) * 1000

pytestmark = pytest.mark.usefixtures("nobody_knocks")


class Encrypted:
    """Every registry over https."""

    def endpoints(self, host: str) -> list[Endpoint]:
        """One endpoint."""
        return [Endpoint(f"https://{host}", host)]


def certificate(folder: Path) -> ssl.SSLContext:
    """The server's side of TLS for 127.0.0.1, with a new certificate signed by itself, `folder/cert.pem`."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def read_encrypted(server: LoopbackRegistry) -> bytes:
    digest = server.add_blob(DATA)

    async def main() -> bytes:
        config = RegistryConfig(retries=1)
        async with Registry(
            config, hosts=Encrypted(), credentials=Known(None), policy=RetryPolicy(1, 0.001)
        ) as registry:
            return await registry.blob(parse_reference(server.reference()), digest, len(DATA)).read_range(0, len(DATA))

    return trio.run(main)


def test_a_certificate_that_the_node_trusts_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackRegistry(tls=certificate(tmp_path)) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert read_encrypted(server) == DATA


def test_a_certificate_that_the_node_does_not_trust_is_an_error_without_a_request(tmp_path: Path) -> None:
    with LoopbackRegistry(tls=certificate(tmp_path)) as server:
        with pytest.raises(
            RegistryError, match=r"certificate of 127\.0\.0\.1 is not accepted: its authority is not known"
        ) as caught:
            read_encrypted(server)
        assert not isinstance(caught.value, RegistryUnreachable)
        assert (server.requests, server.connections) == ([], 0)


def test_the_libraries_below_log_nothing_that_could_hold_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    with LoopbackRegistry() as server, caplog.at_level(logging.DEBUG):
        digest = server.add_blob(DATA)
        server.script("", "redirect:store")
        server.redirects["store"] = server.url

        async def main() -> None:
            async with Registry(RegistryConfig(), credentials=Known(None)) as registry:
                await registry.blob(parse_reference(server.reference()), digest, len(DATA)).read_range(0, 10)

        trio.run(main)
        assert server.requests[-1].query == "signature=s3cr3t-signature"
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectTimeout(""), Transient),
        (httpx.ReadTimeout(""), Transient),
        (httpx.WriteError(""), Transient),
        (httpx.RemoteProtocolError("x"), Transient),
        (httpx.ProxyError("x"), Transient),
        (httpx.LocalProtocolError("x"), RegistryError),
        (httpx.UnsupportedProtocol("x"), RegistryError),
        (httpx.DecodingError("x"), RegistryError),
        (httpx.TooManyRedirects("x"), RegistryError),
    ],
)
def test_every_exception_of_httpx_becomes_one_of_ours(error: httpx.HTTPError, kind: type[Exception]) -> None:
    fault = fault_of(error, httpx.URL("https://u:pw@r.test/x?sig=s3cr3t"))
    assert type(fault) is kind
    assert "s3cr3t" not in str(fault)
    assert "pw" not in str(fault)


def test_a_relay_counts_and_a_cut_line_is_survived() -> None:
    data = DATA * 64  # more than lies in the buffers of a connection
    with LoopbackRegistry() as server, Relay("127.0.0.1", server.port, delay_s=0.001) as relay:
        digest = server.add_blob(data)

        async def main() -> None:
            async with Registry(RegistryConfig(), credentials=Known(None)) as registry:
                blob = registry.blob(parse_reference(f"{relay.address}/a/b"), digest, len(data))
                async with blob.open_range(0, len(data)) as pieces:
                    found = [await anext(pieces)]
                    await trio.to_thread.run_sync(relay.drop_all)
                    found += [piece async for piece in pieces]
                assert b"".join(found) == data

        trio.run(main)
        assert relay.connections == 2
        assert relay.down > len(data)
        assert relay.up > 0


def flood(listener: socket.socket, sent: list[int]) -> None:
    """Answer one request with a header that has no end; how much of it was taken."""
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 206 Partial Content\r\nx-endless: ")
        while sent[0] < 1 << 30:
            sent[0] += connection.send(b"a" * (64 << 10))


def test_an_answer_whose_headers_have_no_end_is_given_up_at_the_limit() -> None:
    sent = [0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=flood, args=(listener, sent))
        thread.start()

        async def main() -> None:
            async with Registry(RegistryConfig(retries=0), credentials=Known(None)) as registry:
                reference = parse_reference(f"127.0.0.1:{listener.getsockname()[1]}/a/b")
                with pytest.raises(RegistryError):
                    await registry.blob(reference, digest_of(DATA), len(DATA)).read_range(0, 10)

        trio.run(main)
        thread.join()
    # What the kernel's buffers hold is taken by nobody.
    assert HEADERS_MAX < sent[0] < 32 << 20
