"""Credential helpers: real programs, what they say and how they fail, and how often they are run."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import RegistryDenied
from snapshotter.registry import credential_helpers
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.credential_helpers import CredentialHelpers, run_helper
from snapshotter.registry.credentials import CredentialOrigin, DockerConfig
from snapshotter.registry.reference import parse_reference
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.token_server import TokenServer

SECRET = "s3cr3t-of-the-helper"
ANSWER = json.dumps({"ServerURL": "r.test", "Username": "me", "Secret": SECRET})
NOT_FOUND = "echo credentials not found in native keychain >&2; exit 1"


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}


def helper(environ: Mapping[str, str], script: str, name: str = "site") -> Path:
    """A helper that notes what it is asked in `asked`, then does what `script` says."""
    path = Path(environ["PATH"].partition(":")[0]) / f"docker-credential-{name}"
    path.write_text(f'#!/bin/sh\nread -r server; echo "$1 $server" >>"$HOME/asked"\n{script}\n')
    path.chmod(0o755)
    return path


def asked(environ: Mapping[str, str]) -> list[str]:
    path = Path(environ["HOME"]) / "asked"
    return path.read_text().splitlines() if path.exists() else []


def says(answer: str) -> str:
    return f"cat <<'END'\n{answer}\nEND"


def config(environ: Mapping[str, str], **document: object) -> DockerConfig:
    path = Path(environ["HOME"]) / "config.json"
    path.write_text(json.dumps(document))
    return DockerConfig(path, environ, helper_timeout_s=20.0)


def test_a_helper_is_asked_as_docker_asks(environ: Mapping[str, str]) -> None:
    helper(environ, says(ANSWER))
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)
    assert asked(environ) == ["get r.test"]


def test_the_user_token_means_an_identity_token(environ: Mapping[str, str]) -> None:
    helper(environ, says(json.dumps({"Username": "<token>", "Secret": SECRET})))
    assert run_helper("site", "r.test", environ, 20) == Credential(refresh_token=SECRET)


def test_a_helper_that_has_nothing_is_no_error(environ: Mapping[str, str]) -> None:
    helper(environ, NOT_FOUND)
    assert run_helper("site", "r.test", environ, 20) is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo keychain is locked >&2; exit 1",
            "ended with 1 when asked for r.test: keychain is locked; run `echo r.test |",
        ),
        ("kill -9 $$", "was killed by signal 9"),
        (says("rubbish"), "something that is not a credential"),
        (says("[1]"), "something that is not a credential"),
        (says('{"Username": 3, "Secret": "x"}'), "something that is not a credential"),
        (says('{"Username": "me", "Secret": ""}'), "without a secret"),
        ("head -c 200000 /dev/zero", "something that is not a credential"),
        ("exit 0", "something that is not a credential"),
    ],
)
def test_a_helper_that_fails_is_named_with_what_to_do(environ: Mapping[str, str], script: str, words: str) -> None:
    helper(environ, script)
    with pytest.raises(RegistryDenied) as caught:
        run_helper("site", "r.test", environ, 20)
    assert words in str(caught.value)
    assert "docker-credential-site" in str(caught.value)


def test_a_missing_helper_is_told_with_the_path_that_was_searched(environ: Mapping[str, str]) -> None:
    with pytest.raises(RegistryDenied, match="not on the PATH of this process") as caught:
        run_helper("site", "r.test", environ, 20)
    assert environ["PATH"] in str(caught.value)


def test_a_helper_that_may_not_be_executed_is_another_fault_than_a_missing_one(environ: Mapping[str, str]) -> None:
    helper(environ, says(ANSWER)).chmod(0o644)
    with pytest.raises(RegistryDenied, match=r"may not be executed: chmod \+x it"):
        run_helper("site", "r.test", environ, 20)


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "-x", "a;b"])
def test_a_name_that_is_no_program_is_never_run(environ: Mapping[str, str], name: str) -> None:
    with pytest.raises(RegistryDenied, match="no name of a program"):
        run_helper(name, "r.test", environ, 20)


def test_a_helper_that_hangs_is_stopped_with_all_that_it_started(environ: Mapping[str, str], tmp_path: Path) -> None:
    helper(environ, f"sleep 600 & echo $! >{tmp_path / 'child'}; echo $$ >{tmp_path / 'self'}; wait")
    with pytest.raises(RegistryDenied, match="within 1 s and was stopped"):
        run_helper("site", "r.test", environ, 1.0)
    for name in ("self", "child"):
        status = Path("/proc") / (tmp_path / name).read_text().strip() / "status"
        assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_helper_that_leaves_a_child_with_its_output_has_said_all(environ: Mapping[str, str]) -> None:
    helper(environ, f"sleep 600 &\n{says(ANSWER)}")
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)


def test_what_a_helper_prints_is_in_no_message(environ: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    helper(environ, f"{says(ANSWER)}\necho token eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.abc refused >&2; exit 1")
    helpers = CredentialHelpers(environ, 20)
    with caplog.at_level(logging.DEBUG), pytest.raises(RegistryDenied) as caught:
        helpers.get("site", "r.test")
    text = str(caught.value) + caplog.text + repr(helpers.problems())
    assert "token … refused" in text
    assert SECRET not in text
    assert "eyJ" not in text


def test_an_answer_is_kept_and_asked_for_again_once_it_was_refused(environ: Mapping[str, str]) -> None:
    now = [0.0]
    helper(environ, says(ANSWER))
    helpers = CredentialHelpers(environ, 20, lambda: now[0])
    for at, fresh, runs in [
        (0, False, 1),
        (30, False, 1),
        (30, True, 2),
        (30.5, True, 2),
        (31.5, True, 3),
        (100, False, 4),
    ]:
        now[0] = at
        assert helpers.get("site", "r.test", fresh=fresh) == Credential("me", SECRET)
        assert len(asked(environ)) == runs


def test_a_failure_is_kept_for_a_moment_told_once_and_over_when_it_works(
    environ: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    path = helper(environ, "exit 3")
    helpers = CredentialHelpers(environ, 20, lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for at in (0.0, 1.0, 6.0):
            now[0] = at
            with pytest.raises(RegistryDenied, match="ended with 3"):
                helpers.get("site", "r.test", fresh=True)
    assert len(asked(environ)) == 2
    assert len(caplog.records) == 1
    assert list(helpers.problems()) == ["r.test"]
    path.unlink()
    helper(environ, says(ANSWER))
    now[0] = 12.0
    assert helpers.get("site", "r.test") == Credential("me", SECRET)
    assert helpers.problems() == {}


def test_many_at_once_run_a_helper_once(environ: Mapping[str, str]) -> None:
    helper(environ, f"sleep 0.2\n{says(ANSWER)}")
    source = config(environ, credHelpers={"r.test": "site"})
    found: list[Credential | None] = []

    async def one(number: int) -> None:
        found.append(await source.lookup("r.test", f"repository/{number}"))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)

    trio.run(main)
    assert found == [Credential("me", SECRET)] * 100
    assert asked(environ) == ["get r.test"]


@pytest.mark.parametrize(
    ("document", "host", "server"),
    [
        ({"credHelpers": {"r.test": "site"}, "credsStore": "other"}, "r.test", "r.test"),
        ({"credHelpers": {"x.test": "other"}, "credsStore": "site"}, "r.test", "r.test"),
        ({"credHelpers": {"https://index.docker.io/v1/": "site"}}, "docker.io", "https://index.docker.io/v1/"),
        ({"credsStore": "site"}, "docker.io", "https://index.docker.io/v1/"),
        ({"credHelpers": {"r.test:5000": "site"}}, "r.test:5000", "r.test:5000"),
    ],
)
def test_the_helper_of_the_host_outranks_that_of_all(
    environ: Mapping[str, str], document: dict[str, object], host: str, server: str
) -> None:
    helper(environ, says(ANSWER))
    assert config(environ, **document).find(host, "a/b") == Credential("me", SECRET)
    assert asked(environ) == [f"get {server}"]


def test_where_the_helper_has_nothing_the_file_counts(environ: Mapping[str, str]) -> None:
    helper(environ, NOT_FOUND)
    source = config(environ, credsStore="site", auths={"r.test": {"username": "file", "password": "pw"}})
    assert source.find("r.test", "a/b") == Credential("file", "pw")


def test_an_empty_name_for_a_host_means_the_file(environ: Mapping[str, str]) -> None:
    helper(environ, says(ANSWER))
    source = config(
        environ, credHelpers={"r.test": ""}, credsStore="site", auths={"r.test": {"username": "file", "password": "pw"}}
    )
    assert source.find("r.test", "a/b") == Credential("file", "pw")
    assert asked(environ) == []


def test_where_a_credential_comes_from_is_told_without_it(environ: Mapping[str, str]) -> None:
    helper(environ, says(ANSWER))
    source = config(environ, credHelpers={"r.test": "site"}, auths={"f.test": {"username": "file", "password": "pw"}})
    assert source.describe("r.test", "a/b") == CredentialOrigin("docker-credential-site", "for r.test", "me")
    assert source.describe("f.test", "a/b") == CredentialOrigin(str(source.path), "its entry for f.test", "file")
    assert source.describe("n.test", "a/b").source == "none"
    os.unlink(source.path)
    assert source.describe("r.test", "a/b") == CredentialOrigin("none", f"there is no {source.path}")


DATA = b"0123456789" * 100


def reading(environ: Mapping[str, str], server: LoopbackRegistry, between: Callable[[], None]) -> None:
    """Read a blob with what a helper gives, do `between`, and read on."""
    source = config(environ, credHelpers={server.host: "site"})
    digest = server.add_blob(DATA)

    async def main() -> None:
        async with Registry(RegistryConfig(), credentials=source) as registry:
            blob = registry.blob(parse_reference(server.reference()), digest, len(DATA))
            assert await blob.read_range(0, 10) == DATA[:10]
            between()
            assert await blob.read_range(10, 10) == DATA[10:20]

    assert digest == digest_of(DATA)
    trio.run(main)


def gives(environ: Mapping[str, str], password: str) -> None:
    helper(environ, says(json.dumps({"Username": "me", "Secret": password})))


def test_a_password_that_is_replaced_in_mid_life_is_taken_within_the_read(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_helpers, "FRESH_S", 0.0)
    with LoopbackRegistry() as server:
        server.users = {"me": "first"}
        gives(environ, "first")

        def replace() -> None:
            server.users = {"me": "second"}
            gives(environ, "second")

        reading(environ, server, replace)


def test_a_token_server_that_refuses_the_old_password_is_asked_with_the_new_one(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credential_helpers, "FRESH_S", 0.0)
    with TokenServer(users={"me": "first"}) as tokens, LoopbackRegistry() as server:
        server.tokens = tokens
        server.challenge = tokens.challenge()
        gives(environ, "first")

        def replace() -> None:
            tokens.revoke()
            tokens.users = {"me": "second"}
            gives(environ, "second")

        reading(environ, server, replace)


def test_a_credential_that_stays_refused_does_not_run_the_helper_for_each_read(environ: Mapping[str, str]) -> None:
    with LoopbackRegistry() as server:
        server.users = {"me": "another"}
        gives(environ, "wrong")
        with pytest.raises(RegistryDenied, match="the credentials were refused; log in again"):
            reading(environ, server, lambda: None)
        assert len(asked(environ)) == 1
