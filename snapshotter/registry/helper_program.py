"""One run of a credential helper: a program named `docker-credential-<name>` that is asked for one server.

Source: the documentation of docker's credential helpers (protocol, `<token>` as user name, "credentials not found in native
keychain" as the answer of one that has none).
"""

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import RegistryDenied
from snapshotter.registry.credential import Credential
from snapshotter.registry.reference import canonical_host

ANSWER_MAX = 64 << 10
SAID_MAX = 300

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105 (docker's word for: the secret is a token)
_POLL_S = 0.02

# What a message must not quote: the value of a name that promises one; a long word, unless it is a place on the network or on
# the disk that no key is part of.
_SECRET_SAID = re.compile(r'"Secret"\s*:\s*"([^"]+)"')
_NAMED_SECRET = re.compile(
    r"(?i)((?:pass(?:word|wd|phrase)?|pwd|secret|token|key|authorization|credentials?)[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer)\s+)?"
    r"|\b(?:basic|bearer)\s+|://(?=[^/\s@]*@))[^\s\"',;}@]+"
)
_LONG_WORD = re.compile(r"[A-Za-z0-9+/=_.~-]{20,}")
_PLACE = re.compile(r"[a-z0-9/_.-]*[./][a-z0-9/_.-]*")
_DENSE = re.compile(r"(?=[a-z]*[0-9])(?=[0-9]*[a-z])[a-z0-9]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-")


@dataclass(frozen=True, slots=True)
class _Told:
    """How a helper ended (None: it was stopped for the time it took), its standard output, its standard error; both bounded."""

    code: int | None
    out: bytes
    said: str


def run_helper(
    name: str, server: str, environ: Mapping[str, str], timeout_s: float, last: Credential | None = None
) -> Credential | None:
    """Run a helper once. `last` is what it gave before, which it may show when it fails.

    Raises RegistryDenied: the helper, the server and what to do are named; what it printed is not shown, for it is secret.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise RegistryDenied(
            f"docker's config.json names the helper {name!r} for {server}: that is no name of a program"
        )
    told = _run([_found(program, server, environ), "get"], server, environ, timeout_s)
    by_hand = f"run `echo {server} | {program} get` by hand"
    if told.code is None:
        raise RegistryDenied(
            f"{program} gave no credentials for {server} within {timeout_s:g} s and was stopped: {by_hand}, "
            "or raise registry.credential_helper_timeout_s"
        )
    if told.code != 0:
        if _NOT_FOUND in told.said or _NOT_FOUND in told.out[:SAID_MAX].decode(errors="replace"):
            return None
        how = f"ended with {told.code}" if told.code > 0 else f"was killed by signal {-told.code}"
        words = quotable(told.said, *_secrets(told.out, last))
        raise RegistryDenied(f"{program} {how} when asked for {server}{f': {words}' if words else ''}; {by_hand}")
    return _parse(told.out, program, server)


def _found(program: str, server: str, environ: Mapping[str, str]) -> str:
    places = environ.get("PATH", os.defpath)
    path = shutil.which(program, path=places)
    if path is not None:
        return path
    if (there := shutil.which(program, os.F_OK, places)) is not None:
        raise RegistryDenied(f"{there}, which has the credentials of {server}, may not be executed: chmod +x it")
    raise RegistryDenied(
        f"the credentials of {server} are {program}'s to give, which is not on the PATH of this process "
        f"({places}): install it there, or give the unit the PATH that has it"
    )


def _parse(out: bytes, program: str, server: str) -> Credential | None:
    try:
        answer: Any = json.loads(out) if len(out) <= ANSWER_MAX else None
        username, secret, whose = answer["Username"], answer["Secret"], answer.get("ServerURL") or server
        if not (isinstance(username, str) and isinstance(secret, str) and isinstance(whose, str)):
            raise TypeError
        # JSON can write halves of characters. An error from later on would show the secret in which it found one.
        f"{username}{secret}{whose}".encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RegistryDenied(
            f"{program} answered for {server} with something that is not a credential (JSON with Username and Secret "
            "is expected); is it the right program, and new enough?"
        ) from None
    if _host(whose) != _host(server):
        raise RegistryDenied(
            f"{program} was asked for {server} and answered for {_host(whose)[:100]!r}: not used; {program} must be mended"
        )
    if not secret:
        raise RegistryDenied(f"{program} has an entry for {server} without a secret: log in again")
    if username == _TOKEN_USER:
        return Credential(refresh_token=secret)
    return Credential(username, secret)


def _host(server: str) -> str:
    return canonical_host((server.partition("://")[2] or server).partition("/")[0])


def _secrets(out: bytes, last: Credential | None) -> Iterator[str]:
    """What a helper that failed may have shown on the way: what it was about to say, and what it said before."""
    yield from (match[1] for match in _SECRET_SAID.finditer(out.decode(errors="replace")))
    if last is not None:
        yield from (last.password, last.refresh_token)


def quotable(said: str, *secrets: str) -> str:
    """The beginning of what a helper said to people, without `secrets` and without what may be one."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        said = said.replace(secret, "…")
    said = _NAMED_SECRET.sub(r"\1…", said)
    said = _LONG_WORD.sub(
        lambda word: word[0] if _PLACE.fullmatch(word[0]) and not _DENSE.search(word[0]) else "…", said
    )
    text = " ".join(said.split())
    return "".join(mark for mark in text if mark.isprintable())[:SAID_MAX]


def _run(command: list[str], given: str, environ: Mapping[str, str], timeout_s: float) -> _Told:
    """Run a command that is asked `given`.

    Nothing that it starts outlives it: it has a process group of its own, which is killed at the end.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A system unit need not have a home, and helpers look for what they know there.
            env={"HOME": os.path.expanduser("~"), **environ},
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError:
        return _Told(
            126, b"", f"cannot be started: the interpreter that the first line of {command[0]} names is missing"
        )
    except OSError as error:
        return _Told(126, b"", f"cannot be started: {error.strerror}")
    with process:
        try:
            ended, out, said = _talk(process, given, time.monotonic() + timeout_s)
        finally:
            # It is not reaped yet: no other group can have its number.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if len(out) > ANSWER_MAX:
        return _Told(0, out, "")
    return _Told(process.returncode if ended else None, out, said.decode(errors="replace"))


def _talk(process: "subprocess.Popen[bytes]", given: str, deadline: float) -> tuple[bool, bytes, bytes]:
    """Whether it came to its end in time, and what it said until then; one that says too much is not heard out."""
    if process.stdin is None or process.stdout is None or process.stderr is None:
        return False, b"", b""
    # Shorter than a pipe holds: it never waits for the helper to read. One that does not read says itself what it makes of that.
    with suppress(BrokenPipeError):
        process.stdin.write(given.encode())
        process.stdin.close()
    out, said = process.stdout.fileno(), process.stderr.fileno()
    heard = {out: b"", said: b""}
    ended = False
    with selectors.DefaultSelector() as selector:
        for number in heard:
            selector.register(number, selectors.EVENT_READ)
        while len(heard[out]) <= ANSWER_MAX and (left := deadline - time.monotonic()) > 0:
            ready = selector.select(min(left, _POLL_S))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                heard[key.fd] = (heard[key.fd] + part)[: ANSWER_MAX + 1]
                if not part:
                    selector.unregister(key.fd)
            # What it left running may hold the pipes: it has said all.
            ended = _has_ended(process.pid)
            if ended and not (ready and selector.get_map()):
                break
    return ended, heard[out], heard[said]


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
