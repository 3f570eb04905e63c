"""What credential helpers say, kept for a while: asking takes a process, and that often a request of its own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from snapshotter.errors import RegistryDenied, RegistryUnreachable
from snapshotter.registry.credential import Credential
from snapshotter.registry.helper_program import run_helper

log = logging.getLogger(__name__)

KEPT_S = 60.0
"""How long an answer is believed: asking takes a process, and often a request of its own."""

NOTHING_KEPT_S = 5.0
"""How long it is believed that there is nothing: somebody may be logging in just now."""

FRESH_S = 1.0
"""A younger answer that came after a refusal is not asked for again, however often it was refused as well."""

FAILURE_KEPT_S = 5.0
"""How long a helper that failed is not run again."""

PROBLEM_SHOWN_S = 600.0
"""How long after its last failure a helper is shown as a problem."""

SERVERS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer and when it came; or the failure instead of it, with what is used until the helper works again.

    `renewed`: it came after a refusal. `worked`: the helper has given something in this process's life.
    """

    credential: Credential | None
    failure: str
    at: float
    renewed: bool
    worked: bool

    def given(self) -> Credential | None:
        """The credential. Raises the failure, if nothing can be used in its place."""
        if not self.failure or self.credential is not None:
            return self.credential
        raise (RegistryUnreachable if self.worked else RegistryDenied)(self.failure)

    def believed_s(self, *, fresh: bool) -> float:
        """How long nobody asks again."""
        if self.failure:
            return FAILURE_KEPT_S
        if fresh:
            return FRESH_S if self.renewed else 0.0
        return KEPT_S if self.credential is not None else NOTHING_KEPT_S


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

        While it fails, what it gave before goes on being used until that is refused: helpers that ask a cloud fail with it.

        Raises:
            RegistryDenied: it cannot be run, fails, hangs, or says something else.
            RegistryUnreachable: the same of a helper that has worked before: asking again may help.
        """
        key = name, server
        with self._lock:
            running = self._running.setdefault(key, threading.Lock())
        with running:
            with self._lock:
                kept = self._kept.get(key)
            if kept is None or self._clock() - kept.at >= kept.believed_s(fresh=fresh):
                kept = self._ask(name, server, kept, fresh=fresh)
                self._keep(key, kept)
            elif kept.failure and fresh and kept.credential is not None:
                kept = replace(kept, credential=None)
                self._keep(key, kept)
        return kept.given()

    def problems(self) -> dict[str, str]:
        """What failed last, by server, as far as somebody asked lately."""
        since = self._clock() - PROBLEM_SHOWN_S
        with self._lock:
            return {
                server: kept.failure for (_, server), kept in self._kept.items() if kept.failure and kept.at > since
            }

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

    def _ask(self, name: str, server: str, before: _Kept | None, *, fresh: bool) -> _Kept:
        worked = before is not None and before.worked
        last = before.credential if before is not None else None
        try:
            credential = run_helper(name, server, self._environ, self._timeout_s, last)
        except RegistryDenied as error:
            return _Kept(None if fresh else last, str(error), self._clock(), fresh, worked)
        return _Kept(credential, "", self._clock(), fresh, worked or credential is not None)
