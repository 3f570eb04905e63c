"""One run of a credential helper: real programs, what they say and how they fail."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapshotter.errors import RegistryDenied
from snapshotter.registry import helper_program
from snapshotter.registry.credential import Credential
from snapshotter.registry.helper_program import quotable, run_helper
from tests.registry.programs import Environ, asked, helper, says

SECRET = "s3cr3t-of-the-helper"
ANSWER = json.dumps({"ServerURL": "r.test", "Username": "me", "Secret": SECRET})
NOT_FOUND = "echo credentials not found in native keychain >&2; exit 1"


def test_a_helper_is_asked_as_docker_asks(environ: Environ) -> None:
    helper(environ, says(ANSWER))
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)
    assert asked(environ) == ["get r.test"]


def test_the_user_token_means_an_identity_token(environ: Environ) -> None:
    helper(environ, says(json.dumps({"Username": "<token>", "Secret": SECRET})))
    assert run_helper("site", "r.test", environ, 20) == Credential(refresh_token=SECRET)


def test_a_helper_that_has_nothing_is_no_error(environ: Environ) -> None:
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
def test_a_helper_that_fails_is_named_with_what_to_do(environ: Environ, script: str, words: str) -> None:
    helper(environ, script)
    with pytest.raises(RegistryDenied) as caught:
        run_helper("site", "r.test", environ, 20)
    assert words in str(caught.value)
    assert "docker-credential-site" in str(caught.value)


def test_a_missing_helper_is_told_with_the_path_that_was_searched(environ: Environ) -> None:
    with pytest.raises(RegistryDenied, match="not on the PATH of this process") as caught:
        run_helper("site", "r.test", environ, 20)
    assert environ["PATH"] in str(caught.value)


def test_a_helper_that_may_not_be_executed_is_another_fault_than_a_missing_one(environ: Environ) -> None:
    helper(environ, says(ANSWER)).chmod(0o644)
    with pytest.raises(RegistryDenied, match=r"may not be executed: chmod \+x it"):
        run_helper("site", "r.test", environ, 20)


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "-x", "a;b"])
def test_a_name_that_is_no_program_is_never_run(environ: Environ, name: str) -> None:
    with pytest.raises(RegistryDenied, match="no name of a program"):
        run_helper(name, "r.test", environ, 20)


def test_a_helper_that_hangs_is_stopped_with_all_that_it_started(
    environ: Environ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "self"

    def monotonic() -> float:
        """Its time is over when it hangs, however long it took to get there."""
        return 600.0 if told.exists() and told.read_text() else 0.0

    helper(environ, f"sleep 600 & echo $! >{tmp_path / 'child'}; echo $$ >{told}; wait")
    monkeypatch.setattr(helper_program, "time", SimpleNamespace(monotonic=monotonic))
    with pytest.raises(RegistryDenied, match="within 60 s and was stopped"):
        run_helper("site", "r.test", environ, 60)
    for name in ("self", "child"):
        wait_for_end(int((tmp_path / name).read_text()))


def wait_for_end(pid: int) -> None:
    """Killed is not yet gone."""
    deadline = time.monotonic() + 20
    while True:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_helper_that_leaves_a_child_with_its_output_has_said_all(environ: Environ) -> None:
    helper(environ, f"sleep 600 &\n{says(ANSWER)}")
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)


@pytest.mark.parametrize("server", ["r.test", "https://r.test/v2/", "http://R.test", ""])
def test_an_answer_may_name_its_server_in_any_spelling_or_not_at_all(environ: Environ, server: str) -> None:
    helper(environ, says(json.dumps({"ServerURL": server, "Username": "me", "Secret": SECRET})))
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)


@pytest.mark.parametrize("server", ["other.test", "https://r.test:5000", "r.test.evil", "https://"])
def test_an_answer_for_another_server_is_not_used(environ: Environ, server: str) -> None:
    helper(environ, says(json.dumps({"ServerURL": server, "Username": "me", "Secret": SECRET})))
    with pytest.raises(RegistryDenied, match=r"was asked for r\.test and answered for") as caught:
        run_helper("site", "r.test", environ, 20)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("first_line", "words"),
    [
        ("#!/nowhere/interpreter", "cannot be started: the interpreter .* is missing"),
        ("no program at all", "cannot be started: Exec format error"),
    ],
)
def test_a_helper_that_the_kernel_does_not_start_says_why(environ: Environ, first_line: str, words: str) -> None:
    path = helper(environ, "")
    path.write_text(f"{first_line}\n")
    with pytest.raises(RegistryDenied, match=words):
        run_helper("site", "r.test", environ, 20)


def test_a_helper_that_prints_without_end_is_stopped_long_before_its_time(environ: Environ) -> None:
    helper(environ, "yes")
    with pytest.raises(RegistryDenied, match="something that is not a credential"):
        run_helper("site", "r.test", environ, 300)


def test_a_helper_that_complains_without_end_is_heard_to_its_answer(environ: Environ) -> None:
    helper(environ, f"head -c 1000000 /dev/zero | tr '\\0' 'x' >&2\n{says(ANSWER)}")
    assert run_helper("site", "r.test", environ, 60) == Credential("me", SECRET)


def test_a_helper_that_does_not_read_what_it_is_asked_is_heard(environ: Environ) -> None:
    path = helper(environ, "")
    path.write_text(f"#!/bin/sh\nexec 0<&-\n{says(ANSWER)}\n")
    assert run_helper("site", "r.test", environ, 20) == Credential("me", SECRET)


def test_a_helper_that_closes_its_output_and_hangs_is_stopped(environ: Environ) -> None:
    helper(environ, f"{says(ANSWER)}\nexec >&- 2>&-; sleep 600")
    with pytest.raises(RegistryDenied, match="within 1 s and was stopped"):
        run_helper("site", "r.test", environ, 1.0)


def test_a_child_in_a_session_of_its_own_holds_nobody_up(environ: Environ, tmp_path: Path) -> None:
    helper(environ, f"setsid sleep 600 & echo $! >{tmp_path / 'child'}\n{says(ANSWER)}")
    try:
        assert run_helper("site", "r.test", environ, 300) == Credential("me", SECRET)
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


def test_a_helper_gets_the_environment_and_a_home_but_no_open_file_of_ours(environ: Environ, tmp_path: Path) -> None:
    there = tmp_path / "there"
    helper(
        environ, f'ls -l /proc/self/fd >"{there}"; echo "$AWS_PROFILE" >>"{there}"; echo "${{HOME:-none}}" >>"{there}"'
    )
    with open(tmp_path / "ours", "wb") as ours:
        os.set_inheritable(ours.fileno(), True)
        with pytest.raises(RegistryDenied):
            run_helper("site", "r.test", {"PATH": environ["PATH"], "AWS_PROFILE": "team"}, 20)
    text = there.read_text()
    assert text.splitlines()[-2] == "team"
    assert text.splitlines()[-1] == os.path.expanduser("~")
    assert str(tmp_path / "ours") not in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("keychain is locked", "keychain is locked"),
        ("no host api.ecr.eu-central-1.amazonaws.com: dial tcp", "no host api.ecr.eu-central-1.amazonaws.com: dial tcp"),
        ("cannot open /usr/local/share/credentials/site", "cannot open /usr/local/share/credentials/site"),
        ("password=hunter2 refused", "password=… refused"),
        ('{"Secret": "hunter2"}', '{"Secret": "…"}'),
        ("Authorization: Basic bWU6aHVudGVyMg==", "Authorization: Basic …"),
        ("used bearer abc.def", "used bearer …"),
        ("GET https://me:hunter2@r.test/v2/", "GET https://…@r.test/v2/"),
        ("AKIAIOSFODNN7EXAMPLE is gone", "… is gone"),
        ("550e8400-e29b-41d4-a716-446655440000", "…"),
        ("correct-horse-battery-staple", "…"),
        ("a/3f2504e04f8911d39a0c3f2504e04f89", "…"),
        ("one\n\x1b[31mtwo\x00", "one [31mtwo"),
        ("word " * 1000, ("word " * 1000)[: helper_program.SAID_MAX]),
    ],
)  # fmt: skip
def test_of_what_a_helper_complains_no_secret_is_quoted(said: str, shown: str) -> None:
    assert quotable(said) == shown


def test_what_a_failing_helper_was_about_to_say_is_not_quoted(environ: Environ) -> None:
    helper(environ, 'set -x\necho \'{"Username": "me", "Secret": "short"}\'; false short; exit 1')
    with pytest.raises(RegistryDenied, match="ended with 1") as caught:
        run_helper("site", "r.test", environ, 20)
    assert "short" not in str(caught.value)
