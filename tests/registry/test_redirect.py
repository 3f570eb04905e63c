"""Where a redirect may lead, and what of an address may be shown."""

from collections.abc import Sequence

import httpx
import pytest
import trio
import trio.testing

from snapshotter.errors import RegistryError
from snapshotter.registry.redirect import AddressCheck, next_hop, same_origin, shown
from tests.registry.memory import client, simulate
from tests.registry.servers import network, read, redirects


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.test/x", "https://a.test:443/y?z", True),
        ("https://A.test/", "https://a.test/", True),
        ("http://a.test/", "https://a.test/", False),
        ("https://a.test/", "https://a.test:8443/", False),
        ("https://a.test/", "https://a.test.evil/", False),
        ("https://a.test/", "https://b.a.test/", False),
        ("http://a.test:80/", "http://a.test/", True),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert same_origin(httpx.URL(one), httpx.URL(other)) is same


def test_an_address_is_shown_without_its_signature_and_user() -> None:
    assert (
        shown(httpx.URL("https://user:pw@s3.test:444/bucket/x?X-Amz-Signature=abc#f")) == "https://s3.test:444/bucket/x"
    )


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/other?x=%2B", "https://r.test/other?x=%2B"),
        ("https://cdn.test/b?sig=a%2Fb+c", "https://cdn.test/b?sig=a%2Fb+c"),
        ("//cdn.test/b", "https://cdn.test/b"),
        ("http://r.test/v2/y", "https://r.test/v2/y"),
        ("http://cdn.test/b", "http://cdn.test/b"),
    ],
)
def test_a_location_is_resolved_against_the_request(location: str, target: str) -> None:
    assert str(next_hop(httpx.URL("https://r.test/v2/x"), location)) == target


@pytest.mark.parametrize(
    "location",
    [None, "", "ftp://a.test/x", "file:///etc/passwd", "http://", "https://[::1", "javascript:1", "http://a:99999999/"],
)
def test_a_location_that_is_no_http_address_is_an_error(location: str | None) -> None:
    with pytest.raises(RegistryError):
        next_hop(httpx.URL("https://r.test/v2/x"), location)


@pytest.mark.parametrize(
    "location",
    [
        "x:y//cdn.test/blob",
        "sha256:0https://cdn.test/blob",
        "https://[::1",
        "https://cdn.test:port/",
        "//:x/",
        "\x7f://x",
    ],
)
def test_a_location_that_no_client_can_read_is_an_error_of_ours(location: str) -> None:
    async def work() -> None:
        async with client(network({"https://r.test": redirects(location)})) as registry:
            with pytest.raises(RegistryError):
                await read(registry)

    simulate(work)


def check(addresses: Sequence[str] | Exception, url: str) -> None:
    async def resolve(_: str) -> Sequence[str]:
        if isinstance(addresses, Exception):
            raise addresses
        return addresses

    async def work() -> None:
        await AddressCheck(resolve).admit(httpx.URL(url), "blob x")

    simulate(work)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/x",
        "http://[64:ff9b::a9fe:a9fe]/x",
        "http://[2002:a9fe:a9fe::1]/x",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://168.63.129.16/machine",
        "http://[::ffff:100.100.100.200]/",
    ],
)
def test_a_link_local_address_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="link-local"):
        check([], url)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.1.1"])
def test_a_name_that_resolves_to_a_link_local_address_is_refused(address: str) -> None:
    with pytest.raises(RegistryError, match="link-local"):
        check(["203.0.113.1", address], "http://metadata.test/")


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "169.254.43518", "169.16689662"])
def test_a_link_local_address_written_in_another_way_is_refused(host: str) -> None:
    async def work() -> None:
        with pytest.raises(RegistryError, match="link-local"):
            await AddressCheck().admit(httpx.URL(f"http://{host}/"), "blob x")

    trio.run(work)


@pytest.mark.parametrize(
    "addresses", [["203.0.113.1", "10.0.0.1", "127.0.0.1"], [], OSError("no such name"), UnicodeError()]
)
def test_other_names_pass_even_if_only_a_proxy_can_resolve_them(addresses: Sequence[str] | Exception) -> None:
    check(addresses, "http://cdn.test/")


def test_a_name_is_looked_up_once_a_minute_and_never_waited_for_long() -> None:
    asked: list[str] = []

    async def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        await trio.sleep_forever()
        return ()

    async def work() -> None:
        addresses = AddressCheck(resolve)
        for _ in range(3):
            await addresses.admit(httpx.URL("http://slow.test/"), "blob x")
        assert trio.current_time() < 5
        assert asked == ["slow.test"]
        await trio.sleep(120)
        await addresses.admit(httpx.URL("http://slow.test/"), "blob x")
        assert len(asked) == 2

    simulate(work)
