"""A loopback token server: GET with Basic or anonymous, POST with a refresh token; it records who asked for what."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, parse_qs

from tests.doubles.registry import TokenCheck
from tests.doubles.script import OK, Behaviour, parse_script
from tests.doubles.server import Handler, LoopbackServer, Recorded


class TokenServer(LoopbackServer, TokenCheck):
    """Gives numbered tokens, and says of each whether it is good.

    `users` (name → password) may be empty: then everybody gets a token. `refresh_tokens` are those that POST takes.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        expires_in: float | None = 300,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls=tls)
        self.users = dict(users or {})
        self.refresh_tokens: set[str] = set()
        self.expires_in = expires_in
        self.issued: dict[str, tuple[str, ...]] = {}
        self.rotate_to: str | None = None
        # Guards `issued` and the script.
        self._lock = threading.Lock()
        self._script: Iterator[Behaviour] = iter(())

    def __call__(self, token: str, scope: str) -> bool:
        """Whether `token` is one of ours, not revoked, and covers `scope` (`repository:a/b:pull`)."""
        resource, _, action = scope.rpartition(":")
        with self._lock:
            scopes = self.issued.get(token, ())
        return not scope or any(
            resource == granted.rpartition(":")[0] and action in granted.rpartition(":")[2].split(",")
            for granted in scopes
        )

    def challenge(self, scope: str | None = None) -> str:
        """A WWW-Authenticate header that names this server."""
        return f'Bearer realm="{self.url}/token",service="loopback"' + (f',scope="{scope}"' if scope else "")

    def revoke(self) -> None:
        """No token that was given so far is good any more."""
        with self._lock:
            self.issued.clear()

    def script(self, text: str) -> None:
        """Let the next requests go as `text` says; only statuses and `hang`."""
        self._script = parse_script(text)

    def answer(self, handler: Handler, record: Recorded, url: SplitResult) -> None:
        """One request for a token."""
        with self._lock:
            behaviour: Behaviour = next(self._script, OK)
        if behaviour.name == "hang":
            handler.hold()
            return
        if behaviour.status is not None:
            handler.reply(behaviour.status, b"{}")
            return
        form = parse_qs(record.body.decode() if record.method == "POST" else url.query)
        scopes = [scope for value in form.get("scope", []) for scope in value.split()]
        if not self._known(record, form):
            handler.reply(401, b'{"details":"incorrect username or password"}')
            return
        with self._lock:
            token = f"token-{len(record.path)}-{len(self.issued)}-{id(record):x}"
            self.issued[token] = tuple(scopes)
        answer: dict[str, object] = {"access_token" if record.method == "POST" else "token": token}
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        if self.rotate_to is not None:
            answer["refresh_token"] = self.rotate_to
        handler.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _known(self, record: Recorded, form: Mapping[str, list[str]]) -> bool:
        if record.method == "POST":
            return form.get("refresh_token", [""])[0] in self.refresh_tokens
        if not self.users:
            return True
        scheme, _, value = record.headers.get("authorization", "").partition(" ")
        user, _, password = base64.b64decode(value).decode().partition(":") if scheme == "Basic" else ("", "", "")
        return bool(password) and self.users.get(user) == password
