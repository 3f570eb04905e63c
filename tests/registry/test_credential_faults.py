"""Credentials that are written wrongly, files that are none, helpers that hang: nobody else is held up, and no secret is shown."""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from snapshotter.config import RegistryConfig
from snapshotter.errors import ConfigError, FormatError, RegistryDenied, RegistryError
from snapshotter.registry import credentials
from snapshotter.registry.client import Registry
from snapshotter.registry.credential import Credential
from snapshotter.registry.credentials import DockerConfig, parse_docker_config
from snapshotter.registry.helper_program import run_helper
from snapshotter.registry.reference import parse_reference
from tests.doubles.registry import LoopbackRegistry
from tests.registry.programs import Environ, config, gives, helper, says

HALF = "hunter2-\ud800"
"""A password with half of a character: JSON can write it, UTF-8 cannot."""


@pytest.mark.parametrize("name", ["Username", "Secret", "ServerURL"])
def test_an_answer_with_half_a_character_is_no_credential_and_not_shown(environ: Environ, name: str) -> None:
    helper(environ, says(json.dumps({"ServerURL": "r.test", "Username": "me", "Secret": "hunter2-", name: HALF})))
    with pytest.raises(RegistryDenied, match="something that is not a credential") as caught:
        run_helper("site", "r.test", environ, 20)
    assert "hunter2" not in repr(caught.value)
    # Python's own error holds the text in which it found the half.
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "document",
    [
        {"auths": {"r.test": {"username": "me", "password": HALF}}},
        {"auths": {"r.test": {"identitytoken": HALF}}},
        {"auths": {HALF: {"auth": "bWU6cHc="}}},
        {"credsStore": HALF},
    ],
)
def test_a_file_with_half_a_character_is_refused_and_nothing_of_it_shown(document: Mapping[str, object]) -> None:
    with pytest.raises(FormatError) as caught:
        parse_docker_config(json.dumps(document).encode())
    assert str(caught.value) == "not JSON"
    assert caught.value.__suppress_context__


def test_a_whole_character_that_is_written_as_two_halves_is_one(environ: Environ) -> None:
    helper(environ, says(r'{"Username": "me", "Secret": "\ud83d\ude00"}'))
    assert run_helper("site", "r.test", environ, 20) == Credential("me", "\U0001f600")


def test_a_reader_is_denied_and_told_no_part_of_a_password_that_no_header_can_carry(
    environ: Environ, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[RegistryError] = []

    async def main(server: LoopbackRegistry, digest: str, source: DockerConfig) -> None:
        async with Registry(RegistryConfig(), credentials=source) as registry:
            try:
                await registry.blob(parse_reference(server.reference()), digest, 10).read_range(0, 10)
            except RegistryError as error:
                caught.append(error)

    with LoopbackRegistry() as server, caplog.at_level(logging.DEBUG):
        server.users = {"me": "hunter2"}
        digest = server.add_blob(b"0123456789")
        helper(environ, says(json.dumps({"Username": "me", "Secret": HALF})))
        trio.run(main, server, digest, config(environ, credHelpers={server.host: "site"}))
        trio.run(main, server, digest, config(environ, auths={server.host: {"username": "me", "password": HALF}}))
    assert len(caught) == 2
    assert "hunter2" not in repr(caught) + caplog.text


def test_a_path_that_the_file_system_refuses_is_a_complaint_and_no_crash(environ: Environ) -> None:
    too_long = Path("/", "a" * 300)
    source = DockerConfig(too_long, environ)
    assert source.find("r.test", "a/b") is None
    assert source.absence() == f"cannot read {too_long}: File name too long"
    with pytest.raises(ConfigError, match="cannot be read: File name too long; mend it"):
        source.describe("r.test", "a/b")


def test_a_folder_that_must_not_be_entered_is_a_complaint_and_no_crash(
    environ: Environ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, whom the kernel refuses nothing; a security module refuses root as well.
    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    source = DockerConfig(tmp_path / "config.json", environ)
    monkeypatch.setattr(os, "stat", refuse)
    found = source.find("r.test", "a/b")
    monkeypatch.undo()
    assert found is None
    assert "Permission denied" in source.absence()


def test_a_pipe_in_the_place_of_the_file_keeps_nobody_waiting(environ: Environ, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = DockerConfig(path, environ)
    asking = threading.Thread(target=source.find, args=("r.test", "a/b"), daemon=True)
    asking.start()
    asking.join(20)
    assert not asking.is_alive()
    assert "not a file, but a device or a pipe" in source.problems()[str(path)]
    with pytest.raises(ConfigError, match="not a file, but a device or a pipe"):
        source.describe("r.test", "a/b")
    path.unlink()
    path.write_text(json.dumps({"auths": {"r.test": {"username": "me", "password": "pw"}}}))
    assert source.find("r.test", "a/b") == Credential("me", "pw")
    assert source.problems() == {}


def running(folder: Path, count: int) -> None:
    """Return when `count` helpers have written their process ids into `folder`."""
    deadline = time.monotonic() + 60
    while sum(1 for path in folder.iterdir() if path.read_text().strip()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_helper_that_hangs_for_many_servers_holds_up_no_other_helper(environ: Environ, tmp_path: Path) -> None:
    folder = tmp_path / "pids"
    folder.mkdir()
    helper(environ, f'echo $$ >"{folder}/$server"; exec sleep 60', name="hangs")
    gives(environ, "pw")
    source = config(environ, credsStore="hangs", credHelpers={"good.test": "site"})
    found: list[Credential | None] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3 * credentials.HELPERS_AT_ONCE):
                nursery.start_soon(source.lookup, f"r{number}.test", "a/b")
            await trio.to_thread.run_sync(running, folder, credentials.HELPERS_AT_ONCE)
            found.append(await source.lookup("good.test", "a/b"))
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        for path in folder.iterdir():
            os.kill(int(path.read_text()), 9)
    # Had it waited for the others, they would have ended with an error, and the nursery with them.
    assert found == [Credential("me", "pw")]
