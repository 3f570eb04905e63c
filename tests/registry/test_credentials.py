"""docker's config.json."""

import base64
import json
import logging
import os
from pathlib import Path

import pytest
import trio

from snapshotter.errors import FormatError
from snapshotter.registry.credential import Credential
from snapshotter.registry.credentials import DockerConfig, parse_docker_config


def encoded(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def auths(**entries: object) -> bytes:
    return json.dumps({"auths": entries}).encode()


def write(path: Path, content: bytes, mtime: int) -> None:
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))


@pytest.mark.parametrize(
    ("entry", "credential"),
    [
        ({"auth": encoded("me:pw")}, Credential("me", "pw")),
        ({"auth": encoded("me:p:w")}, Credential("me", "p:w")),
        ({"auth": encoded("me:pw\0\0")}, Credential("me", "pw")),
        ({"username": "me", "password": "pw"}, Credential("me", "pw")),
        ({"auth": encoded("me:"), "identitytoken": "it"}, Credential("me", "", "it")),
        ({"registrytoken": "rt"}, Credential(registry_token="rt")),
        ({}, None),
        ({"auth": "", "email": "x"}, None),
    ],
)
def test_each_form_of_an_entry_is_read(entry: object, credential: Credential | None) -> None:
    assert parse_docker_config(auths(**{"r.test": entry})).auths.get("r.test") == credential


@pytest.mark.parametrize(
    ("key", "host", "repository"),
    [
        ("https://index.docker.io/v1/", "docker.io", "library/x"),
        ("docker.io", "registry-1.docker.io", "library/x"),
        ("https://r.test", "r.test", "a/b"),
        ("https://r.test/v2/", "R.test", "a/b"),
        ("r.test:5000", "r.test:5000", "a/b"),
        ("r.test/a", "r.test", "a/b"),
        ("r.test/a/b", "r.test", "a/b"),
    ],
)
def test_keys_are_matched_as_docker_writes_them(tmp_path: Path, key: str, host: str, repository: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(auths(**{key: {"auth": encoded("me:pw")}}))
    assert DockerConfig(path).find(host, repository) == Credential("me", "pw")


def test_the_entry_with_the_longest_path_wins(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(auths(**{"r.test": {"auth": encoded("all:x")}, "r.test/team": {"auth": encoded("team:x")}}))
    config = DockerConfig(path)
    assert [c.username for c in (config.find("r.test", "team/x"), config.find("r.test", "teamx/y")) if c] == [
        "team",
        "all",
    ]


def test_another_host_gets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(auths(**{"r.test": {"auth": encoded("me:pw")}}))
    config = DockerConfig(path)
    assert [config.find(h, "a/b") for h in ("r.test:5000", "evil.r.test", "r.test.evil", "docker.io")] == [None] * 4


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = DockerConfig(tmp_path)
    assert config.find("r.test", "a") is None
    write(path, auths(**{"r.test": {"auth": encoded("one:pw")}}), 1000)
    assert config.find("r.test", "a") == Credential("one", "pw")
    write(path, auths(**{"r.test": {"auth": encoded("two:pw")}}), 2000)
    assert config.find("r.test", "a") == Credential("two", "pw")
    path.unlink()
    assert config.find("r.test", "a") is None


def test_a_broken_file_keeps_the_last_good_one_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.json"
    write(path, auths(**{"r.test": {"auth": encoded("one:hunter2")}}), 1000)
    config = DockerConfig(path)
    assert config.find("r.test", "a") is not None
    write(path, b'{"auths": {"r.test": {"auth": "hunter2', 2000)
    with caplog.at_level(logging.WARNING):
        assert config.find("r.test", "a") == Credential("one", "hunter2")
    assert "not a docker config.json" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"auths": []}', b'{"auths": {"h": []}}', b'{"auths": {"h": {"auth": 1}}}',
     b'{"auths": {"h": {"auth": "%%%"}}}', b'{"auths": {"h": {"auth": "/w=="}}}'],
)  # fmt: skip
def test_an_odd_file_is_a_format_error(content: bytes) -> None:
    with pytest.raises(FormatError):
        parse_docker_config(content)


def test_a_directory_in_the_place_of_the_file_means_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "config.json" / "config.json").mkdir(parents=True)
    assert DockerConfig(tmp_path / "config.json").find("r.test", "a") is None


def test_the_environment_says_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(auths(**{"r.test": {"auth": encoded("me:pw")}}))
    config = DockerConfig(environ={"DOCKER_CONFIG": str(tmp_path)})
    assert trio.run(config.lookup, "r.test", "a") == Credential("me", "pw")


def test_the_repr_of_a_credential_shows_no_secret() -> None:
    assert "s3cr3t" not in repr(Credential("me", "s3cr3t-a", "s3cr3t-b", "s3cr3t-c"))


def test_a_refused_credential_is_read_again_though_the_file_looks_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = DockerConfig(path)
    write(path, auths(**{"r.test": {"registrytoken": "token-1"}}), 1000)
    assert config.find("r.test", "a") == Credential(registry_token="token-1")
    # Same size, and as soon after the first as the file system's clock cannot tell.
    with path.open("r+b") as file:
        file.write(auths(**{"r.test": {"registrytoken": "token-2"}}))
    os.utime(path, (1000, 1000))
    assert config.find("r.test", "a") == Credential(registry_token="token-1")
    assert config.find("r.test", "a", fresh=True) == Credential(registry_token="token-2")


def test_a_fault_of_the_disk_is_over_when_the_file_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write(path, auths(**{"r.test": {"auth": encoded("me:pw")}}), 1000)
    config = DockerConfig(path)
    assert config.find("r.test", "a") == Credential("me", "pw")
    aside = path.rename(tmp_path / "aside")
    path.symlink_to(path.name)
    assert config.find("r.test", "a") == Credential("me", "pw")
    assert "Too many levels of symbolic links" in config.problems()[str(path)]
    path.unlink()
    aside.rename(path)
    assert config.find("r.test", "a") == Credential("me", "pw")
    assert config.problems() == {}


def test_of_two_spellings_dockers_own_counts(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    mine, other = {"auth": encoded("mine:pw")}, {"auth": encoded("other:pw")}
    path.write_bytes(auths(**{"https://index.docker.io/v1/": mine, "docker.io.": {}, "index.docker.io": other, "r.test": mine, "http://r.test/v2/": other}))  # fmt: skip
    config = DockerConfig(path)
    assert [found.username for host in ("docker.io", "r.test") if (found := config.find(host, "a/b"))] == ["mine"] * 2
