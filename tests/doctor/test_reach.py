import ssl
import time
from pathlib import Path

import pytest
import trustme

from snapshotter.doctor.reach import addresses, knock, proxy_for, proxy_settings, without_secret
from snapshotter.errors import RegistryUnreachable
from snapshotter.registry.hosts import Endpoint
from tests.doubles.closed_port import ClosedPort
from tests.doubles.registry import LoopbackRegistry


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def endpoint(base: str) -> Endpoint:
    return Endpoint(base, "registry.test")


def test_an_answer_has_a_status_and_the_servers_time() -> None:
    with LoopbackRegistry() as registry:
        answer = knock(endpoint(registry.url), 10.0)
    assert answer.status == 200
    assert answer.date is not None
    assert abs(answer.date - time.time()) < 60
    assert [(one.method, one.path) for one in registry.requests] == [("GET", "/v2/")]


def test_a_certificate_that_is_not_trusted_keeps_nobody_from_telling_the_time() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.test").configure_cert(context)
    with LoopbackRegistry(tls=context) as registry:
        assert knock(endpoint(registry.url), 10.0).date is not None


def test_nobody_and_silence_are_told_apart() -> None:
    with ClosedPort() as closed, pytest.raises(RegistryUnreachable, match="does not answer: Connection refused"):
        knock(endpoint(f"http://127.0.0.1:{closed.port}"), 10.0)
    with LoopbackRegistry() as registry:
        registry.script("/v2/", "hang*")
        with pytest.raises(RegistryUnreachable, match="no answer in time"):
            knock(endpoint(registry.url), 0.3)


def test_a_name_without_an_address_is_an_error() -> None:
    assert "127.0.0.1" in addresses("127.0.0.1")
    for name in ("no-such-host.invalid", "x" * 70):
        with pytest.raises(RegistryUnreachable, match="has no address"):
            addresses(name)


def test_proxies_are_shown_without_their_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for(endpoint("https://r.test")) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cr3t@proxy.test:3128/")
    monkeypatch.setenv("no_proxy", ".inside.test")
    assert proxy_for(endpoint("https://r.test")) == "http://proxy.test:3128"
    assert proxy_for(endpoint("https://r.inside.test")) is None
    assert proxy_for(endpoint("http://r.test")) is None
    assert without_secret("me:s3cr3t@proxy.test:3128") == "http://proxy.test:3128"


def test_an_environment_may_write_proxies_either_way() -> None:
    assert proxy_settings({"HTTP_PROXY": "a", "no_proxy": "b", "HOME": "/"}) == {"http_proxy": "a", "no_proxy": "b"}
    assert proxy_settings({"NO_PROXY": "b", "https_proxy": ""}) == {}


def test_no_secret_is_sent(tmp_path: Path) -> None:
    with LoopbackRegistry() as registry:
        knock(endpoint(registry.url), 10.0)
    assert "authorization" not in registry.requests[0].headers
