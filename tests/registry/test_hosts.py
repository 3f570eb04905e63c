"""Where a registry is reached."""

import pytest

from snapshotter.registry.hosts import DirectHosts, Endpoint


@pytest.mark.parametrize(
    ("host", "base", "registry"),
    [
        ("docker.io", "https://registry-1.docker.io", "docker.io"),
        ("quay.io", "https://quay.io", "quay.io"),
        ("localhost", "http://localhost", "localhost"),
        ("localhost:5000", "http://localhost:5000", "localhost:5000"),
        ("localhost:443", "https://localhost:443", "localhost:443"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("127.8.8.8", "http://127.8.8.8", "127.8.8.8"),
        ("[::1]:5000", "http://[::1]:5000", "[::1]:5000"),
        ("localhost.evil.test", "https://localhost.evil.test", "localhost.evil.test"),
        ("127.0.0.1.evil.test", "https://127.0.0.1.evil.test", "127.0.0.1.evil.test"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000", "10.0.0.1:5000"),
        ("plain.test:5000", "http://plain.test:5000", "plain.test:5000"),
        ("plain.test:5001", "https://plain.test:5001", "plain.test:5001"),
        ("bare.test:1234", "http://bare.test:1234", "bare.test:1234"),
        ("BARE.test", "http://BARE.test", "bare.test"),
    ],
)
def test_loopback_and_listed_hosts_are_plain_and_all_others_are_not(host: str, base: str, registry: str) -> None:
    found = DirectHosts(("plain.test:5000", "bare.test")).endpoints(host)
    assert [(endpoint.base, endpoint.registry) for endpoint in found] == [(base, registry)]


def test_an_endpoint_knows_its_addresses() -> None:
    endpoint = Endpoint("https://mirror.test:444", "docker.io", prefix="/proxy/v2")
    assert (endpoint.host, endpoint.secure) == ("mirror.test:444", True)
    assert (
        endpoint.url("library/x", "manifests/latest") == "https://mirror.test:444/proxy/v2/library/x/manifests/latest"
    )
