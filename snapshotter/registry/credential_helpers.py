"""Credential helpers: programs named `docker-credential-<name>` that know passwords, or make them.

Source: the documentation of docker's credential helpers (protocol, `<token>` as user name, "credentials not found in native
keychain" as the answer of one that has none).
"""

import json
import logging
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import RegistryDenied
from snapshotter.registry.credential import Credential

log = logging.getLogger(__name__)

KEPT_S = 60.0
"""How long an answer is believed: asking takes a process, and often a request of its own."""

FRESH_S = 1.0
"""A younger answer is not asked for again, however often it was refused: who gets it now gets the same."""

FAILURE_KEPT_S = 5.0
"""How long a helper that failed is not run again."""

PROBLEM_SHOWN_S = 600.0
"""How long after its last failure a helper is shown as a problem."""

ANSWER_MAX = 64 << 10
SAID_MAX = 300
SERVERS_KEPT = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105 (docker's word for: the secret is a token)
# Words of this length are no prose, and may be tokens: they are not quoted.
_SECRET_LIKE = re.compile(r"[A-Za-z0-9+/=_.-]{24,}")
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer, or the failure instead of it, and when it came."""

    credential: Credential | None
    failure: str
    at: float


class CredentialHelpers:
    """Runs helpers, each for one server once at a time, and keeps what they say for a while. Blocks; from any thread."""

    def __init__(
        self, environ: Mapping[str, str], timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`environ` is theirs, and its PATH is where they are looked for."""
        self._environ = environ
        self._timeout_s = timeout_s
        self._clock = clock
        self._kept: dict[tuple[str, str], _Kept] = {}
        # Guards the dictionaries.
        self._lock = threading.Lock()
        # Each is held while its helper runs: whoever comes meanwhile gets the same answer.
        self._running: dict[tuple[str, str], threading.Lock] = {}

    def get(self, name: str, server: str, *, fresh: bool = False) -> Credential | None:
        """What helper `name` has for `server`, None if nothing; `fresh` if what it said last was refused.

        Raises RegistryDenied: it cannot be run, fails, hangs, or says something else.
        """
        key = name, server
        with self._lock:
            running = self._running.setdefault(key, threading.Lock())
        with running:
            kept = self._current(key, fresh=fresh)
            if kept is None:
                kept = self._ask(name, server)
                self._keep(key, kept)
        if kept.failure:
            raise RegistryDenied(kept.failure)
        return kept.credential

    def problems(self) -> dict[str, str]:
        """What failed last, by server, as far as somebody asked lately."""
        since = self._clock() - PROBLEM_SHOWN_S
        with self._lock:
            return {
                server: kept.failure for (_, server), kept in self._kept.items() if kept.failure and kept.at > since
            }

    def _current(self, key: tuple[str, str], *, fresh: bool) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            return None
        good_for_s = FAILURE_KEPT_S if kept.failure else FRESH_S if fresh else KEPT_S
        return kept if self._clock() - kept.at < good_for_s else None

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        with self._lock:
            before = self._kept.pop(key, None)
            self._kept[key] = kept
            if len(self._kept) > SERVERS_KEPT:
                oldest = next(iter(self._kept))
                del self._kept[oldest]
                self._running.pop(oldest, None)
        if kept.failure and (before is None or before.failure != kept.failure):
            log.warning("credentials: %s", kept.failure)

    def _ask(self, name: str, server: str) -> _Kept:
        try:
            credential = run_helper(name, server, self._environ, self._timeout_s)
        except RegistryDenied as error:
            return _Kept(None, str(error), self._clock())
        return _Kept(credential, "", self._clock())


def run_helper(name: str, server: str, environ: Mapping[str, str], timeout_s: float) -> Credential | None:
    """Run a helper once.

    Raises RegistryDenied: the helper, the server and what to do are named; what it printed is not shown, for it is secret.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise RegistryDenied(
            f"docker's config.json names the helper {name!r} for {server}: that is no name of a program"
        )
    path = shutil.which(program, path=environ.get("PATH", os.defpath))
    if path is None and (there := shutil.which(program, os.F_OK, environ.get("PATH", os.defpath))) is not None:
        raise RegistryDenied(f"{there}, which has the credentials of {server}, may not be executed: chmod +x it")
    if path is None:
        raise RegistryDenied(
            f"the credentials of {server} are {program}'s to give, which is not on the PATH of this process "
            f"({environ.get('PATH', os.defpath)}): install it there, or give the unit the PATH that has it"
        )
    code, out, said = _run([path, "get"], server, environ, timeout_s)
    if code is None:
        raise RegistryDenied(
            f"{program} gave no credentials for {server} within {timeout_s:g} s and was stopped: run "
            f"`echo {server} | {program} get` by hand, or raise registry.credential_helper_timeout_s"
        )
    if code != 0:
        if _NOT_FOUND in said or _NOT_FOUND in out[:SAID_MAX].decode(errors="replace"):
            return None
        how = f"ended with {code}" if code > 0 else f"was killed by signal {-code}"
        words = _quotable(said)
        raise RegistryDenied(
            f"{program} {how} when asked for {server}{f': {words}' if words else ''}; run `echo {server} | {program} get` by hand"
        )
    return _parse(out, program, server)


def _parse(out: bytes, program: str, server: str) -> Credential | None:
    try:
        answer: Any = json.loads(out) if len(out) <= ANSWER_MAX else None
        username, secret = answer["Username"], answer["Secret"]
        if not (isinstance(username, str) and isinstance(secret, str)):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RegistryDenied(
            f"{program} answered for {server} with something that is not a credential (JSON with Username and Secret "
            "is expected); is it the right program, and new enough?"
        ) from None
    if not secret:
        raise RegistryDenied(f"{program} has an entry for {server} without a secret: log in again")
    if username == _TOKEN_USER:
        return Credential(refresh_token=secret)
    return Credential(username, secret)


def _quotable(said: str) -> str:
    """The beginning of what a helper said to people, without what may be a secret."""
    text = " ".join(_SECRET_LIKE.sub("…", said).split())
    return "".join(mark for mark in text if mark.isprintable())[:SAID_MAX]


def _run(command: list[str], given: str, environ: Mapping[str, str], timeout_s: float) -> tuple[int | None, bytes, str]:
    """(exit code or None if it had to be stopped, standard output, standard error), both bounded.

    Nothing that it starts outlives it: it has a process group of its own, which is killed at the end.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environ),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        return 126, b"", f"cannot be started: {error.strerror}"
    with process:
        try:
            return _talk(process, given, time.monotonic() + timeout_s)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def _talk(process: "subprocess.Popen[bytes]", given: str, deadline: float) -> tuple[int | None, bytes, str]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        return None, b"", ""
    try:
        # Shorter than a pipe holds: it never waits for the helper to read.
        process.stdin.write(given.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it does not read what it is asked; its answer says what it makes of that
    heard: dict[int, bytes] = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        for number in heard:
            selector.register(number, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            ready = selector.select(min(left, _POLL_S))
            for key, _ in ready:
                part = os.read(key.fd, 1 << 16)
                heard[key.fd] = (heard[key.fd] + part)[: ANSWER_MAX + 1]
                if not part:
                    selector.unregister(key.fd)
            if not ready and process.poll() is not None:
                break  # what it left running holds the pipes; it has said all
    out, said = heard[process.stdout.fileno()], heard[process.stderr.fileno()].decode(errors="replace")
    try:
        return process.wait(max(0.0, deadline - time.monotonic())), out, said
    except subprocess.TimeoutExpired:
        return None, out, said
