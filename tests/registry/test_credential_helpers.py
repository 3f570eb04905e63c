"""Credential helpers: real programs, what they say and how they fail, and how often they are run."""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import ConfigError, RegistryDenied, RegistryUnreachable
from snapshotter.registry import credential_helpers
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.credential_helpers import CredentialHelpers
from snapshotter.registry.credentials import CredentialOrigin
from snapshotter.registry.reference import parse_reference
from tests.doubles.registry import LoopbackRegistry, digest_of
from tests.doubles.token_server import TokenServer
from tests.registry.programs import Environ, asked, config, gives, helper, says

SECRET = "s3cr3t-of-the-helper"
ANSWER = json.dumps({"ServerURL": "r.test", "Username": "me", "Secret": SECRET})
NOT_FOUND = "echo credentials not found in native keychain >&2; exit 1"


def test_what_a_helper_prints_is_in_no_message(environ: Environ, caplog: pytest.LogCaptureFixture) -> None:
    helper(environ, f"{says(ANSWER)}\necho token eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.abc refused >&2; exit 1")
    helpers = CredentialHelpers(environ, 20)
    with caplog.at_level(logging.DEBUG), pytest.raises(RegistryDenied) as caught:
        helpers.get("site", "r.test")
    text = str(caught.value) + caplog.text + repr(helpers.problems())
    assert "token … refused" in text
    assert SECRET not in text
    assert "eyJ" not in text


def test_an_answer_is_kept_and_asked_for_again_once_it_was_refused(environ: Environ) -> None:
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
    environ: Environ, caplog: pytest.LogCaptureFixture
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


def test_many_at_once_run_a_helper_once(environ: Environ) -> None:
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
    environ: Environ, document: dict[str, object], host: str, server: str
) -> None:
    helper(environ, says(json.dumps({"ServerURL": server, "Username": "me", "Secret": SECRET})))
    assert config(environ, **document).find(host, "a/b") == Credential("me", SECRET)
    assert asked(environ) == [f"get {server}"]


def test_where_the_helper_has_nothing_the_file_counts(environ: Environ) -> None:
    helper(environ, NOT_FOUND)
    source = config(environ, credsStore="site", auths={"r.test": {"username": "file", "password": "pw"}})
    assert source.find("r.test", "a/b") == Credential("file", "pw")


def test_an_empty_name_for_a_host_means_the_file(environ: Environ) -> None:
    helper(environ, says(ANSWER))
    source = config(
        environ, credHelpers={"r.test": ""}, credsStore="site", auths={"r.test": {"username": "file", "password": "pw"}}
    )
    assert source.find("r.test", "a/b") == Credential("file", "pw")
    assert asked(environ) == []


def test_where_a_credential_comes_from_is_told_without_it(environ: Environ) -> None:
    helper(environ, says(ANSWER))
    source = config(environ, credHelpers={"r.test": "site"}, auths={"f.test": {"username": "file", "password": "pw"}})
    assert source.describe("r.test", "a/b") == CredentialOrigin("docker-credential-site", "for r.test", "me")
    assert source.describe("f.test", "a/b") == CredentialOrigin(str(source.path), "its entry for f.test", "file")
    assert source.describe("n.test", "a/b").source == "none"
    os.unlink(source.path)
    assert source.describe("r.test", "a/b") == CredentialOrigin("none", f"there is no {source.path}")


DATA = b"0123456789" * 100


def reading(environ: Environ, server: LoopbackRegistry, between: Callable[[], None]) -> None:
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


def test_a_password_that_is_replaced_in_mid_life_is_taken_within_the_read(environ: Environ) -> None:
    with LoopbackRegistry() as server:
        server.users = {"me": "first"}
        gives(environ, "first")

        def replace() -> None:
            server.users = {"me": "second"}
            gives(environ, "second")

        reading(environ, server, replace)


def test_a_token_server_that_refuses_the_old_password_is_asked_with_the_new_one(environ: Environ) -> None:
    with TokenServer(users={"me": "first"}) as tokens, LoopbackRegistry() as server:
        server.tokens = tokens
        server.challenge = tokens.challenge()
        gives(environ, "first")

        def replace() -> None:
            tokens.revoke()
            tokens.users = {"me": "second"}
            gives(environ, "second")

        reading(environ, server, replace)


def test_a_credential_that_stays_refused_does_not_run_the_helper_for_each_read(environ: Environ) -> None:
    with LoopbackRegistry() as server:
        server.users = {"me": "another"}
        gives(environ, "wrong")
        with pytest.raises(RegistryDenied, match="the credentials were refused; log in again"):
            reading(environ, server, lambda: None)
        assert len(asked(environ)) == 1


def test_what_a_helper_said_before_is_not_quoted_when_it_fails(environ: Environ) -> None:
    now = [0.0]
    helper(environ, says('{"Username": "me", "Secret": "short"}'))
    helpers = CredentialHelpers(environ, 20, lambda: now[0])
    helpers.get("site", "r.test")
    helper(environ, "echo the word short is old >&2; exit 1")
    with pytest.raises(RegistryUnreachable, match="the word … is old"):
        helpers.get("site", "r.test", fresh=True)


def test_while_a_helper_fails_what_it_gave_is_used_until_it_is_refused(environ: Environ) -> None:
    now = [0.0]
    helper(environ, says(ANSWER))
    helpers = CredentialHelpers(environ, 20, lambda: now[0])
    mine = helpers.get("site", "r.test")
    helper(environ, "echo no network >&2; exit 1")
    now[0] = 100.0
    assert helpers.get("site", "r.test") == mine
    assert "no network" in helpers.problems()["r.test"]
    for _ in range(3):
        # Not denied: it has worked, so asking again may help, and readers may wait.
        with pytest.raises(RegistryUnreachable, match="no network"):
            helpers.get("site", "r.test", fresh=True)
    with pytest.raises(RegistryUnreachable, match="no network"):
        helpers.get("site", "r.test")
    assert len(asked(environ)) == 2
    helper(environ, says(ANSWER))
    now[0] = 106.0
    assert helpers.get("site", "r.test") == mine
    assert helpers.problems() == {}


def test_that_there_is_nothing_is_believed_for_a_moment_only(environ: Environ) -> None:
    now = [0.0]
    helper(environ, NOT_FOUND)
    helpers = CredentialHelpers(environ, 20, lambda: now[0])
    assert [helpers.get("site", "r.test") for _ in range(3)] == [None] * 3
    helper(environ, says(ANSWER))
    now[0] = credential_helpers.NOTHING_KEPT_S
    assert helpers.get("site", "r.test") == Credential("me", SECRET)


def test_servers_that_are_remembered_are_bounded(environ: Environ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_helpers, "SERVERS_KEPT", 3)
    helpers = CredentialHelpers(environ, 20)
    for number in range(6):
        with pytest.raises(RegistryDenied):
            helpers.get("site", f"r{number}.test")
    assert list(helpers.problems()) == ["r3.test", "r4.test", "r5.test"]


def test_a_helper_is_asked_for_the_server_as_the_file_writes_it(environ: Environ) -> None:
    helper(environ, says(json.dumps({"Username": "me", "Secret": SECRET})))
    source = config(environ, credHelpers={"https://R.test": "site"})
    assert source.find("r.test", "a/b") == Credential("me", SECRET)
    assert asked(environ) == ["get https://R.test"]


def test_a_file_that_cannot_be_read_is_told_to_whoever_asks_and_to_status(environ: Environ) -> None:
    source = config(environ)
    source.path.write_text("{")
    with pytest.raises(ConfigError, match=r"not a docker config.json: not JSON; mend it, or log in again"):
        source.describe("r.test", "a/b")
    assert source.find("r.test", "a/b") is None
    assert source.problems() == {
        str(source.path): f"{source.path} is not a docker config.json (not JSON); what was read before stays; "
        "mend it, or log in again (`docker login` writes it)"
    }
    assert "not JSON" in source.absence()
    source.path.write_text("{}")
    assert source.find("r.test", "a/b") is None
    assert source.problems() == {}
    assert source.absence() == f"{source.path} has none for it"


def test_a_token_is_told_from_a_password_without_showing_it(environ: Environ) -> None:
    source = config(environ, auths={"i.test": {"identitytoken": SECRET}, "r.test": {"registrytoken": SECRET}})
    assert source.describe("i.test", "a/b").detail == "its entry for i.test (an identity token)"
    assert source.describe("r.test", "a/b").detail == "its entry for r.test (a registry token)"


def wait_for_text(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reader_that_is_given_up_does_not_wait_for_the_helper(environ: Environ, tmp_path: Path) -> None:
    helper(environ, f"echo $$ >{tmp_path / 'self'}; sleep 600")
    source = config(environ, credsStore="site")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.lookup, "r.test", "a/b")
            await trio.to_thread.run_sync(wait_for_text, tmp_path / "self")
            nursery.cancel_scope.cancel()

    trio.run(main)
    os.kill(int((tmp_path / "self").read_text()), 9)
