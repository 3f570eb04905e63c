"""Which directory speaks for a registry, and that what is in it counts without a restart."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from snapshotter.errors import HostsError
from snapshotter.registry.certs_d import CHECK_EVERY_S, CertsDirectories
from snapshotter.registry.hosts import Endpoint
from tests.registry.authorities import Authority


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(root: Path, directory: str, text: str = "", name: str = "hosts.toml") -> Path:
    path = root / directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def bases(endpoints: Sequence[Endpoint]) -> list[str]:
    return [endpoint.base + endpoint.prefix for endpoint in endpoints]


def mirror(name: str) -> str:
    return f'[host."https://{name}.test"]\n'


@pytest.mark.parametrize(
    ("directories", "host", "first"),
    [
        (["r.test_5000_", "r.test:5000", "_default"], "r.test:5000", "r.test_5000_"),
        (["r.test:5000", "_default"], "r.test:5000", "r.test:5000"),
        (["r.test", "_default"], "r.test:5000", "_default"),
        (["r.test", "_default"], "r.test", "r.test"),
        (["_default"], "docker.io", "_default"),
        (["docker.io"], "docker.io", "docker.io"),
    ],
)
def test_the_first_directory_that_fits_counts_alone(
    tmp_path: Path, directories: list[str], host: str, first: str
) -> None:
    for number, directory in enumerate(directories):
        write(tmp_path, directory, mirror(f"m{number}"))
    found = CertsDirectories([tmp_path]).endpoints(host)
    assert bases(found)[0] == f"https://m{directories.index(first)}.test/v2"
    assert len(found) == 2


def test_the_first_root_outranks_what_fits_better_in_the_second(tmp_path: Path) -> None:
    write(tmp_path / "one", "_default", mirror("one"))
    write(tmp_path / "two", "r.test", mirror("two"))
    found = CertsDirectories([tmp_path / "one", tmp_path / "two"]).endpoints("r.test")
    assert bases(found) == ["https://one.test/v2", "https://r.test/v2"]


@pytest.mark.parametrize(
    ("text", "host", "expected"),
    [
        ("", "docker.io", ["https://registry-1.docker.io/v2"]),
        (mirror("m"), "docker.io", ["https://m.test/v2", "https://registry-1.docker.io/v2"]),
        ('server = "https://up.test"\n', "r.test", ["https://up.test/v2"]),
        ("skip_verify = true\n", "localhost:5000", ["https://localhost:5000/v2", "http://localhost:5000/v2"]),
        ('server = "http://up.test"\nskip_verify = true\n', "r.test", ["https://up.test/v2", "http://up.test/v2"]),
        ('server = "http://up.test:80"\nskip_verify = true\n', "r.test", ["http://up.test:80/v2"]),
        (mirror("m"), "plain.test", ["https://m.test/v2", "http://plain.test/v2"]),
    ],
)
def test_the_registry_itself_comes_last_and_where_it_always_is(
    tmp_path: Path, text: str, host: str, expected: list[str]
) -> None:
    write(tmp_path, host, text)
    assert bases(CertsDirectories([tmp_path], ["plain.test"]).endpoints(host)) == expected


def test_a_mirror_is_told_its_registry_and_has_credentials_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "docker.io", mirror("m") + '[host."https://registry-1.docker.io"]\n')
    found = CertsDirectories([tmp_path]).endpoints("docker.io")
    assert [(one.namespace, one.credentials_host) for one in found] == [
        ("docker.io", "m.test"),
        (None, "docker.io"),
        (None, "docker.io"),
    ]


def test_without_any_directory_a_registry_is_its_own_server(tmp_path: Path) -> None:
    assert bases(CertsDirectories([tmp_path / "absent"]).endpoints("r.test")) == ["https://r.test/v2"]


def test_a_changed_file_counts_without_a_restart_and_is_looked_at_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    hosts = CertsDirectories([tmp_path], clock=clock)
    assert bases(hosts.endpoints("r.test")) == ["https://r.test/v2"]
    path = write(tmp_path, "r.test", mirror("one"))
    assert bases(hosts.endpoints("r.test")) == ["https://r.test/v2"]
    clock.now += CHECK_EVERY_S
    assert bases(hosts.endpoints("r.test"))[0] == "https://one.test/v2"
    path.write_text(mirror("other"))
    clock.now += CHECK_EVERY_S
    assert bases(hosts.endpoints("r.test"))[0] == "https://other.test/v2"
    path.unlink()
    path.parent.rmdir()
    clock.now += CHECK_EVERY_S
    assert bases(hosts.endpoints("r.test")) == ["https://r.test/v2"]


def test_a_file_that_breaks_is_told_once_and_what_it_said_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = write(tmp_path, "r.test", mirror("good"))
    hosts = CertsDirectories([tmp_path], clock=clock)
    hosts.endpoints("r.test")
    path.write_text("[host\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += CHECK_EVERY_S
            assert bases(hosts.endpoints("r.test"))[0] == "https://good.test/v2"
    (record,) = caplog.records
    assert f"{path}:1: not valid TOML" in record.getMessage()
    assert "what was read before goes on" in record.getMessage()
    path.write_text(mirror("mended"))
    clock.now += CHECK_EVERY_S
    assert bases(hosts.endpoints("r.test"))[0] == "https://mended.test/v2"


def test_a_file_that_was_never_right_is_an_error_until_it_is(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path, "r.test", "servr\n")
    hosts = CertsDirectories([tmp_path], clock=clock)
    for _ in range(2):
        with pytest.raises(HostsError, match=r"hosts\.toml:1: not valid TOML"):
            hosts.endpoints("r.test")
        clock.now += CHECK_EVERY_S / 2
    path.write_text(mirror("m"))
    clock.now += CHECK_EVERY_S
    assert bases(hosts.endpoints("r.test"))[0] == "https://m.test/v2"


def test_an_unknown_key_is_told_once_for_each_version_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = write(tmp_path, "r.test", "servr = 1\n")
    hosts = CertsDirectories([tmp_path], clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            hosts.endpoints("r.test")
            clock.now += CHECK_EVERY_S
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}:1: servr is no key of hosts.toml, and counts for nothing; did you mean server?"
    ]


@pytest.mark.parametrize("toml", [None, "", "  \n"])
def test_without_a_hosts_toml_the_files_of_docker_count(tmp_path: Path, toml: str | None) -> None:
    authority = Authority()
    directory = tmp_path / "r.test"
    directory.mkdir()
    if toml is not None:
        (directory / "hosts.toml").write_text(toml)
    authority.write_ca(directory / "site.crt")
    authority.write_client(directory / "me.cert", directory / "me.key")
    (found,) = CertsDirectories([tmp_path]).endpoints("r.test")
    assert (found.tls.ca, found.tls.client) == (
        (directory / "site.crt",),
        ((directory / "me.cert", directory / "me.key"),),
    )


def test_a_renewed_certificate_is_another_way_of_tls(tmp_path: Path) -> None:
    clock = Clock()
    ca = tmp_path / "ca.crt"
    Authority().write_ca(ca)
    write(tmp_path, "r.test", f'ca = "{ca}"\n')
    hosts = CertsDirectories([tmp_path], clock=clock)
    before = hosts.endpoints("r.test")
    clock.now += CHECK_EVERY_S
    assert hosts.endpoints("r.test") == before
    Authority().write_ca(ca)
    os.utime(ca, ns=(1, 1))
    clock.now += CHECK_EVERY_S
    assert hosts.endpoints("r.test") != before


@pytest.mark.parametrize(
    ("text", "files", "words"),
    [
        ('ca = "absent.crt"', {}, "absent.crt: the authority's certificate cannot be read: No such file"),
        ('ca = "bad.crt"', {"bad.crt": "rubbish"}, "bad.crt holds no certificate of an authority"),
        ('client = "absent.pem"', {}, "absent.pem: there is no such file"),
        ('client = "bad.pem"', {"bad.pem": "rubbish"}, "bad.pem cannot be used: not PEM, or not a pair"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, text: str, files: dict[str, str], words: str
) -> None:
    write(tmp_path, "r.test", text)
    for name, content in files.items():
        write(tmp_path, "r.test", content, name)
    with pytest.raises(HostsError, match=r"r\.test") as caught:
        CertsDirectories([tmp_path]).endpoints("r.test")
    assert words in str(caught.value)


def test_a_key_of_another_certificate_and_an_encrypted_one_are_told_apart(tmp_path: Path) -> None:
    directory = tmp_path / "r.test"
    directory.mkdir()
    one, other = Authority(), Authority()
    one.write_client(directory / "me.cert", directory / "gone.key")
    other.write_client(directory / "gone.cert", directory / "me.key")
    (directory / "gone.cert").unlink()
    with pytest.raises(HostsError, match="the key is not the certificate's"):
        CertsDirectories([tmp_path]).endpoints("r.test")
    one.write_encrypted_key(directory / "me.key")
    with pytest.raises(HostsError, match="the key is encrypted"):
        CertsDirectories([tmp_path]).endpoints("r.test")
    (directory / "me.key").unlink()
    with pytest.raises(HostsError, match=r"me\.cert has no key beside it: me\.key is missing"):
        CertsDirectories([tmp_path]).endpoints("r.test")
