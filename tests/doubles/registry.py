"""A loopback registry that follows scripts (`tests.doubles.script`), records every request and takes pushes."""

import base64
import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, parse_qs

from tests.doubles.script import OK, Behaviour, parse_script
from tests.doubles.server import Handler, LoopbackServer, Recorded
from tests.doubles.wire_faults import FAULTS, Wanted

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ROUTE = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>blobs|manifests)/(?P<name>[^/]+|uploads/[^/]*)")
_MIB = bytes(1 << 20)


def digest_of(data: bytes) -> str:
    """The sha256 digest of `data` as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class LoopbackRegistry(LoopbackServer):
    """A registry on 127.0.0.1 while its context is open. Blobs are shared by all repositories, as in a small store.

    `challenge` is the WWW-Authenticate of its 401. `users` (name → password) makes it ask for Basic; `tokens` (a function
    that says whether a bearer token is good for a scope such as `repository:a/b:pull`) for Bearer.
    """

    def __init__(self, *, repository: str = "library/image", tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.repository = repository
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.redirects: dict[str, str] = {}
        self.challenge = 'Basic realm="loopback"'
        self.users: Mapping[str, str] = {}
        self.tokens: TokenCheck | None = None
        self._uploads: dict[str, str] = {}
        self._scripts: dict[tuple[str | None, str], Iterator[Behaviour]] = {}
        # Guards the dictionaries above, and advances scripts one request at a time.
        self._lock = threading.Lock()

    def add_blob(self, data: bytes) -> str:
        """Store a blob and return its digest."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(
        self,
        document: Mapping[str, object] | bytes,
        *,
        tag: str = "latest",
        media_type: str = OCI_MANIFEST,
        repository: str | None = None,
    ) -> str:
        """Store a manifest under a tag and its digest, and return the digest."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        for name in (tag, digest_of(raw)):
            self.manifests[repository or self.repository, name] = (raw, media_type)
        return digest_of(raw)

    def script(self, path: str, text: str, *, method: str | None = None) -> None:
        """Let the next requests whose path ends with `path` (of `method`, if given) go as `text` says."""
        with self._lock:
            self._scripts[method, path] = parse_script(text)

    def reference(self, suffix: str = ":latest") -> str:
        """A reference to the registry's usual repository."""
        return f"{self.host}/{self.repository}{suffix}"

    def answer(self, handler: Handler, record: Recorded, url: SplitResult) -> None:
        """One request, through the script and the door, to what it asks for."""
        behaviour = self._next(record)
        if behaviour.name == "slow":
            time.sleep(behaviour.value)
            behaviour = OK
        if behaviour.name == "hang":
            handler.hold()
        elif behaviour.name == "close":
            handler.close_connection = True
        elif behaviour.name.startswith("redirect"):
            self._redirect(handler, behaviour, url)
        elif behaviour.status is not None:
            self._status(handler, behaviour)
        elif not self._admitted(record):
            handler.reply(401, b"{}", {"WWW-Authenticate": self.challenge})
        else:
            self._route(handler, record, url, behaviour)

    def _next(self, record: Recorded) -> Behaviour:
        with self._lock:
            for (method, path), script in self._scripts.items():
                if record.path.endswith(path) and method in {None, record.method}:
                    return next(script, OK)
        return OK

    def _redirect(self, handler: Handler, behaviour: Behaviour, url: SplitResult) -> None:
        location = url.path
        if behaviour.name == "redirect":
            location = f"{self.redirects[behaviour.target]}{url.path}?signature=s3cr3t-signature"
        handler.reply(307, b"", {} if behaviour.name == "redirect-nowhere" else {"Location": location})

    def _status(self, handler: Handler, behaviour: Behaviour) -> None:
        headers = {"Retry-After": f"{behaviour.value:g}"} if behaviour.value else {}
        if behaviour.status == 401:
            headers["WWW-Authenticate"] = self.challenge
        handler.reply(behaviour.status or 500, b'{"errors":[{"code":"SCRIPTED"}]}', headers)

    def _admitted(self, record: Recorded) -> bool:
        scheme, _, value = record.headers.get("authorization", "").partition(" ")
        if self.tokens is not None:
            match = _ROUTE.fullmatch(record.path)
            scope = (
                f"repository:{match['repository']}:{'pull' if record.method in {'GET', 'HEAD'} else 'push'}"
                if match
                else ""
            )
            return scheme == "Bearer" and self.tokens(value, scope)
        if self.users:
            user, _, password = base64.b64decode(value).decode().partition(":") if scheme == "Basic" else ("", "", "")
            return bool(password) and self.users.get(user) == password
        return True

    def _route(self, handler: Handler, record: Recorded, url: SplitResult, behaviour: Behaviour) -> None:
        match = _ROUTE.fullmatch(record.path)
        if record.path == "/v2/":
            handler.reply(200, b"{}")
        elif match is None:
            handler.reply(404)
        elif match["name"].startswith("uploads/"):
            self._upload(handler, record, url, match["repository"])
        elif match["kind"] == "manifests":
            self._manifest(handler, record, match["repository"], match["name"], behaviour)
        elif (blob := self.blobs.get(match["name"])) is None:
            handler.reply(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        else:
            send_blob(handler, record, blob, behaviour)

    def _manifest(self, handler: Handler, record: Recorded, repository: str, name: str, behaviour: Behaviour) -> None:
        if record.method == "PUT":
            media_type = record.headers.get("content-type", OCI_MANIFEST)
            with self._lock:
                for key in (name, digest_of(record.body)):
                    self.manifests[repository, key] = (record.body, media_type)
            handler.reply(201, b"", {"Docker-Content-Digest": digest_of(record.body)})
            return
        found = self.manifests.get((repository, name))
        if found is None:
            handler.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            return
        raw, media_type = found
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(raw)}
        if behaviour.name == "corrupt":
            raw = bytes([raw[0] ^ 1]) + raw[1:]
        send_body(handler, 200, headers, raw, behaviour)

    def _upload(self, handler: Handler, record: Recorded, url: SplitResult, repository: str) -> None:
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if record.method == "POST" and query.get("mount") in self.blobs:
            handler.reply(201, b"", {"Location": f"/v2/{repository}/blobs/{query['mount']}"})
        elif record.method == "POST":
            with self._lock:
                number = f"upload-{len(self._uploads)}"
                self._uploads[number] = repository
            handler.reply(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{number}?state=a%2Bb"})
        elif digest_of(record.body) != query.get("digest"):
            handler.reply(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        else:
            with self._lock:
                self.blobs[query["digest"]] = record.body
            handler.reply(201, b"", {"Location": f"/v2/{repository}/blobs/{query['digest']}"})


class TokenCheck:
    """Says whether a token is good for a scope; `tests.doubles.token_server` has one."""

    def __call__(self, token: str, scope: str) -> bool:
        """Whether `token` allows `scope`."""
        raise NotImplementedError


def send_blob(handler: Handler, record: Recorded, blob: bytes, behaviour: Behaviour) -> None:
    """A blob or the range of it that was asked for, as `behaviour` says."""
    wanted = record.range
    if behaviour.name == "200-to-range" or wanted is None:
        send_body(handler, 200, {}, blob, behaviour)
        return
    first, last = wanted[0], min(wanted[1], len(blob) - 1)
    if first > last:
        handler.reply(416, b"", {"Content-Range": f"bytes */{len(blob)}"})
        return
    if behaviour.name in FAULTS:
        FAULTS[behaviour.name](Wanted(handler, blob, first, last + 1, behaviour.value))
        return
    headers = {"Content-Type": "application/octet-stream"}
    if behaviour.name == "wrong-range":
        first, last = (first + 1, last) if first < last else (0, len(blob) - 1)
    if behaviour.name == "short":
        last = min(last, first + int(behaviour.value) - 1)
    if behaviour.name != "no-range":
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob)}"
    if behaviour.name == "multipart":
        headers = {"Content-Type": "multipart/byteranges; boundary=x"}
    if behaviour.name == "gzip":
        headers["Content-Encoding"] = "gzip"
    body = blob[first : last + 1]
    if behaviour.name == "corrupt":
        body = bytes([body[0] ^ 1]) + body[1:]
    send_body(handler, 206, headers, body, behaviour)


def send_body(handler: Handler, status: int, headers: Mapping[str, str], body: bytes, behaviour: Behaviour) -> None:
    """A response whose body ends where `behaviour` says."""
    if behaviour.name == "endless":
        handler.close_connection = True
        handler.begin(status, {**headers, "Connection": "close"})
        handler.send(body)
        while not handler.server_double.closing.is_set():
            handler.send(_MIB)
        return
    extra = bytes(int(behaviour.value)) if behaviour.name == "long" else b""
    handler.begin(status, {**headers, "Content-Length": str(len(body) + len(extra))})
    if behaviour.name in {"cut", "stall"}:
        handler.send(body[: int(behaviour.value)])
        handler.close_connection = True
        if behaviour.name == "stall":
            handler.hold()
        return
    handler.send(body + extra if extra else body)
