"""References read as containerd reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import ConfigError, FormatError
from snapshotter.registry.reference import Reference, canonical_host, checked_digest, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.11", "docker.io/library/python:3.11"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/python:3", "docker.io/library/python:3"),
        ("rootproject/root", "docker.io/rootproject/root:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b"),
        ("[2001:db8::1]/a", "[2001:db8::1]/a:latest"),
        ("registry.example.com/a__b/c--d/e.f", "registry.example.com/a__b/c--d/e.f:latest"),
        ("UPPER/x", "UPPER/x:latest"),
        ("foo:5000/bar", "foo:5000/bar:latest"),
        ("foo:5000", "docker.io/library/foo:5000"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
        (f"python:3.11@{DIGEST}", f"docker.io/library/python:3.11@{DIGEST}"),
        (f"h:1/n@{DIGEST}", f"h:1/n@{DIGEST}"),
        ("a/" + "b" * 200, "docker.io/a/" + "b" * 200 + ":latest"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
        ("docker.io", "docker.io/library/docker.io:latest"),
        ("x:_under", "docker.io/library/x:_under"),
    ],
)
def test_a_reference_has_one_normalised_form(text: str, normalised: str) -> None:
    assert str(parse_reference(text)) == normalised


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        ":tag",
        "@" + DIGEST,
        "host.example/",
        "host.example//x",
        "host.example/Upper",
        "host.example/a/-b",
        "host.example/a___b",
        "host.example/a..b",
        "host.example/a/../b",
        "host.example:99999/x",
        "host.example:0/x",
        "host.example:/x",
        "-host.example/x",
        "host_name.example/x",
        "[::1/x",
        "x:" + "t" * 129,
        "x:.dot",
        "x:",
        "x@",
        "x@sha256:abc",
        "x@sha512:" + "0" * 128,
        "x@" + DIGEST.upper(),
        "x y",
        "x\n",
        "http://host.example/x",
        "0" * 64,
        "a/" + "b" * 254,
        "docker.io/",
        "ünïcode",
    ],
)
def test_what_containerd_refuses_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_reference(text)


_component = st.from_regex(r"[a-z0-9]+(?:(?:\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True).filter(
    lambda s: len(s) < 30
)
_hosts = st.sampled_from(["docker.io", "quay.io", "localhost", "localhost:5000", "[::1]:443", "Reg.Example:65535"])
_tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
_digests = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}")


@given(_hosts, st.lists(_component, min_size=2, max_size=4).map("/".join), st.none() | _tags, st.none() | _digests)
def test_a_normalised_reference_reads_back_to_itself(
    host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    ref = Reference(host, repository, tag if tag or digest else "latest", digest)
    assert parse_reference(str(ref)) == ref


@given(st.text(max_size=300) | st.from_regex(r"[a-zA-Z0-9.:/@_\[\]-]{0,80}", fullmatch=True))
def test_any_text_is_a_reference_or_a_config_error(text: str) -> None:
    try:
        ref = parse_reference(text)
    except ConfigError:
        return
    assert parse_reference(str(ref)) == ref


def test_docker_hub_answers_at_another_name() -> None:
    assert parse_reference("python").api_host == "registry-1.docker.io"
    assert parse_reference("quay.io/x/y").api_host == "quay.io"


def test_the_digest_selects_when_there_is_one() -> None:
    assert parse_reference(f"x:1@{DIGEST}").selector == DIGEST
    assert parse_reference("x:1").selector == "1"
    assert parse_reference("x:1").with_digest(DIGEST).selector == DIGEST


def test_the_names_of_docker_hub_are_one_host() -> None:
    assert {canonical_host(h) for h in ("docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO")} == {
        "docker.io"
    }


@pytest.mark.parametrize(
    "text", ["", "sha256:", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), "sha512:" + "0" * 128, DIGEST + "\n"]
)
def test_only_canonical_sha256_is_a_digest(text: str) -> None:
    with pytest.raises(FormatError):
        checked_digest(text)
