"""Answers to 401: Basic, and bearer tokens from the realm that the registry names; kept until they expire.

Who gets what: a credential goes to its registry, and to the token realm that the registry itself named in a 401, over
https; over http only if the registry itself is spoken to over http.

Source: OCI distribution's documentation of token authentication (GET) and OAuth2 (POST); RFC 6750; RFC 7617.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import httpx
import msgspec
import trio

from snapshotter.errors import RegistryDenied, RegistryError
from snapshotter.registry.challenge import Challenge, parse_challenges
from snapshotter.registry.credential import Credential
from snapshotter.registry.credentials import CredentialSource
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.redirect import is_http, shown
from snapshotter.registry.wire import Wire

CLIENT_ID = "estargz-snapshotter"
# What a token is worth when its server does not say (distribution's specification), and how early it is renewed.
_TOKEN_LIFE_S = 60.0
_EARLY_S = 10.0
# How long a Basic header is used before the credential is looked up again.
_BASIC_LIFE_S = 60.0
_ANSWER_MAX = 256 << 10
_SCOPE = re.compile(r"(.+):([^:]*)")
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,32768}")


@dataclass(frozen=True, slots=True)
class Need:
    """What a request needs leave for: a server, a repository there, and the scopes of a token."""

    endpoint: Endpoint
    repository: str
    scopes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """What the answer depends on."""
        return self.endpoint.base, self.scopes


@dataclass(frozen=True, slots=True)
class _Demand:
    """What a server wants to see: a Basic header, or a token for these scopes from this realm."""

    realm: str | None
    service: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    """An Authorization header and the time (of trio's clock) until which it is sent."""

    value: str = field(repr=False)
    good_until: float


class _TokenJson(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None
    refresh_token: str = ""


def pull_scope(repository: str) -> str:
    """The scope of reading `repository`."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    """The scope of writing `repository`."""
    return f"repository:{repository}:pull,push"


class Authenticator:
    """The Authorization headers of all registries. Many requests at once fetch a token once."""

    def __init__(self, wire: Wire, credentials: CredentialSource) -> None:
        self._wire = wire
        self._credentials = credentials
        self._demands: dict[tuple[str, tuple[str, ...]], _Demand] = {}
        self._last_demand: dict[str, _Demand] = {}
        self._headers: dict[tuple[str, _Demand], _Header] = {}
        # Rotated refresh tokens: a server may replace the one in the configuration with each use.
        self._refresh_tokens: dict[tuple[str, str | None, str], tuple[str, str]] = {}
        # Each guards the fetching of one token.
        self._locks: dict[tuple[str, tuple[str, ...]], trio.Lock] = {}

    async def header(self, need: Need) -> str | None:
        """The header to send without being asked, None if this server never asked.

        What a server wanted for one repository it will want for the next: asking for the token first saves the 401.
        """
        demand = self._demands.get(need.key)
        if demand is None:
            if (usual := self._last_demand.get(need.endpoint.base)) is None:
                return None
            demand = _Demand(usual.realm, usual.service, need.scopes if usual.realm else ())
        try:
            return await self._obtain(need, demand, refused=None)
        except RegistryError:
            # Perhaps it does not ask this time; if it does, the error comes from `answer`.
            return None

    async def answer(self, need: Need, response: httpx.Response, refused: str | None) -> str:
        """The header that the 401 `response` asks for, other than the `refused` one.

        Raises:
            RegistryDenied: no credential, a refused one, or a challenge that we cannot or must not answer.
            Transient: the token server is ill.
        """
        demand = self._demand(need, parse_challenges(response.headers.get_list("www-authenticate")))
        header = await self._obtain(need, demand, refused)
        self._demands[need.key] = demand
        self._last_demand[need.endpoint.base] = demand
        return header

    async def renew(self, need: Need, refused: str) -> str | None:
        """Another header than `refused`, which earned a 403: some registries say so when a token has expired."""
        demand = self._demands.get(need.key)
        return await self._obtain(need, demand, refused) if demand is not None and demand.realm else None

    def _demand(self, need: Need, challenges: Sequence[Challenge]) -> _Demand:
        endpoint = need.endpoint
        for challenge in challenges:
            if challenge.scheme == "bearer":
                realm = self._checked_realm(endpoint, challenge.parameters.get("realm", ""))
                scopes = merged_scopes(need.scopes, challenge.parameters.get("scope", "").split())
                return _Demand(realm, challenge.parameters.get("service", ""), scopes)
        if any(challenge.scheme == "basic" for challenge in challenges):
            return _Demand(None, "", ())
        schemes = ", ".join(sorted({challenge.scheme[:40] for challenge in challenges})[:5])
        raise RegistryDenied(
            f"{endpoint.host} answers 401 "
            + (f"and asks for {schemes}" if schemes else "without a readable WWW-Authenticate")
            + "; only Basic and Bearer are known: check that this is a registry"
        )

    def _checked_realm(self, endpoint: Endpoint, realm: str) -> str:
        try:
            url = httpx.URL(realm)
        except (httpx.InvalidURL, ValueError):
            raise RegistryDenied(f"{endpoint.host} names a token realm that is no address; ask its operator") from None
        if not is_http(url) or url.userinfo:
            raise RegistryDenied(f"{endpoint.host} names a token realm that is no http address; ask its operator")
        if endpoint.secure and url.scheme != "https":
            raise RegistryDenied(
                f"{endpoint.host} is spoken to over https but sends us for a token to {shown(url)}, unencrypted: refused"
            )
        return realm

    async def _obtain(self, need: Need, demand: _Demand, refused: str | None) -> str:
        key = (need.endpoint.base, demand)
        lock = self._locks.setdefault((need.endpoint.base, demand.scopes), trio.Lock())
        async with lock:
            now = trio.current_time()
            known = self._headers.get(key)
            if known is not None and known.value != refused and known.good_until > now:
                return known.value
            host, repository = need.endpoint.credentials_host, need.repository
            credential = await self._credentials.lookup(host, repository, fresh=refused is not None)
            try:
                fetched = await self._fetch(need, demand, credential)
            except RegistryDenied:
                # A token server that refuses: what a helper said a minute ago may have been replaced meanwhile.
                newer = await self._credentials.lookup(host, repository, fresh=True)
                if newer == credential:
                    raise
                credential = newer
                fetched = await self._fetch(need, demand, credential)
            if fetched.value == refused:
                raise RegistryDenied(
                    f"{need.endpoint.host} refuses {_whose(credential)} for {need.repository}; log in again"
                )
            self._headers = {k: header for k, header in self._headers.items() if header.good_until > now}
            self._headers[key] = fetched
            return fetched.value

    async def _fetch(self, need: Need, demand: _Demand, credential: Credential | None) -> _Header:
        now = trio.current_time()
        if demand.realm is None:
            if credential is None or not credential.password:
                raise RegistryDenied(
                    f"{need.endpoint.host} asks for a user name and a password for {need.repository}, and there are none: "
                    "run `docker login`, or set registry.docker_config"
                )
            return _Header(_basic(credential), now + _BASIC_LIFE_S)
        if credential is not None and credential.registry_token:
            return _Header(_bearer(credential.registry_token, need.endpoint.host), now + _BASIC_LIFE_S)
        answer = await self._ask_realm(need, demand, demand.realm, credential)
        life_s = answer.expires_in if answer.expires_in is not None and answer.expires_in > 0 else _TOKEN_LIFE_S
        token = answer.token or answer.access_token
        return _Header(_bearer(token, demand.realm), now + life_s - min(_EARLY_S, life_s / 4))

    async def _ask_realm(self, need: Need, demand: _Demand, realm: str, credential: Credential | None) -> _TokenJson:
        url = httpx.URL(realm)
        if url.host != httpx.URL(need.endpoint.base).host:
            await self._wire.addresses.admit(url, f"the token realm of {need.endpoint.host}")
        if credential is not None and credential.refresh_token:
            rotation = (need.endpoint.base, demand.realm, demand.service)
            request = self._oauth_request(url, demand, self._current_refresh(rotation, credential))
        else:
            request = self._token_request(url, demand, credential)
        tls = need.endpoint.tls.for_credentials(home=url.host == httpx.URL(need.endpoint.base).host)
        status, body = await self._wire.small_answer(request, _ANSWER_MAX, tls)
        if status in {400, 401, 403}:
            raise RegistryDenied(
                f"{shown(url)} gives no token for {need.repository} to {_whose(credential)} (HTTP {status}): "
                "check that the image exists and that the login is still valid"
            )
        if status != 200:
            raise RegistryError(f"{shown(url)} answers HTTP {status} instead of a token")
        try:
            answer = msgspec.json.decode(body, type=_TokenJson)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise RegistryError(f"{shown(url)} answers something that is not a token") from None
        if not (answer.token or answer.access_token):
            raise RegistryError(f"{shown(url)} answers without a token")
        if credential is not None and credential.refresh_token and answer.refresh_token:
            rotation = (need.endpoint.base, demand.realm, demand.service)
            self._refresh_tokens[rotation] = (credential.refresh_token, answer.refresh_token)
        return answer

    def _current_refresh(self, rotation: tuple[str, str | None, str], credential: Credential) -> str:
        configured, current = self._refresh_tokens.get(rotation, ("", ""))
        return current if configured == credential.refresh_token else credential.refresh_token

    def _token_request(self, url: httpx.URL, demand: _Demand, credential: Credential | None) -> httpx.Request:
        query = [("service", demand.service)] if demand.service else []
        query += [("scope", scope) for scope in demand.scopes]
        headers = {}
        if credential is not None and credential.password:
            query.append(("account", credential.username))
            headers["authorization"] = _basic(credential)
        params = url.params
        for name, value in query:
            params = params.add(name, value)
        return self._wire.request("GET", url.copy_with(params=params), headers=headers)

    def _oauth_request(self, url: httpx.URL, demand: _Demand, refresh_token: str) -> httpx.Request:
        form = {
            "grant_type": "refresh_token",
            "client_id": CLIENT_ID,
            "service": demand.service,
            "scope": " ".join(demand.scopes),
            "refresh_token": refresh_token,
        }
        content = str(httpx.QueryParams(form)).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return self._wire.request("POST", url, headers=headers, content=content)


def merged_scopes(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, ...]:
    """Both lists, sorted, one scope per resource with the actions of all."""
    actions: dict[str, set[str]] = {}
    for scope in (*ours, *theirs):
        match = _SCOPE.fullmatch(scope)
        resource, verbs = (match[1], match[2].split(",")) if match else (scope, [])
        actions.setdefault(resource, set()).update(verbs)
    return tuple(sorted(f"{resource}:{','.join(sorted(a))}" if a else resource for resource, a in actions.items()))


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _bearer(token: str, source: str) -> str:
    if not _PRINTABLE.fullmatch(token):
        raise RegistryDenied(f"the token from {source} has characters that no header can carry; log in again")
    return f"Bearer {token}"


def _whose(credential: Credential | None) -> str:
    if credential is None:
        return "the anonymous user"
    return f"user {credential.username!r}" if credential.username else "the stored identity"
