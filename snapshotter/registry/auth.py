"""Answers to 401: Basic, and bearer tokens from the realm that the registry names; kept until they expire.

Who gets what: a credential goes to its registry, and to the token realm that the registry itself named in a 401, over
https; over http only if the registry itself is spoken to over http. A mirror has its own credential and its own realm.

What was good a minute ago may be refused now: passwords that live for hours, tokens that are revoked, a new login. So whatever
is refused is looked up once more, past all that is kept, before the refusal counts.

Source: OCI distribution's documentation of token authentication (GET) and OAuth2 (POST); RFC 6750; RFC 7617.
"""

import base64
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

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
# How long a credential that is sent as it is is used before it is looked up again.
_CREDENTIAL_LIFE_S = 60.0
_ANSWER_MAX = 256 << 10
# Repositories of which it is remembered what they want, and identity tokens that were replaced: more than a node has.
KEPT = 4096
_SCOPE = re.compile(r"(.+):([^:]*)")
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,32768}")


@dataclass(frozen=True, slots=True)
class Need:
    """What a request needs leave for: a server, a repository there, and the scopes of a token."""

    endpoint: Endpoint
    repository: str
    scopes: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """What the answer depends on. One server may be asked under two names; and a repository, of which the scopes speak, may
        have a credential of its own.
        """
        return self.endpoint.base, self.endpoint.credentials_host, self.scopes


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


_Key = tuple[str, str, tuple[str, ...]]
_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


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
        self._demands: dict[_Key, _Demand] = {}
        self._last_demand: dict[str, _Demand] = {}
        self._headers: dict[tuple[_Key, _Demand], _Header] = {}
        # A server may replace an identity token with each use: by server, realm, service and configured token the newest one.
        self._rotated: dict[tuple[str, str, str, str], str] = {}
        # Each guards the fetching of one header.
        self._locks: dict[_Key, trio.Lock] = {}

    async def header(self, need: Need) -> str | None:
        """The header to send without being asked, None if this server never asked.

        What a server wanted for one repository it will want for the next: asking for the token first saves the 401.
        """
        demand = self._expected(need)
        if demand is None:
            return None
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
        keep(self._demands, need.key, demand)
        keep(self._last_demand, need.endpoint.base, demand)
        return header

    async def renew(self, need: Need, refused: str) -> str | None:
        """Another header than `refused`, which earned a 403, None if there is no other: some registries say so when a token, or
        a password that lives for hours, has expired.
        """
        demand = self._expected(need)
        if demand is None:
            return None
        try:
            return await self._obtain(need, demand, refused)
        except RegistryDenied:
            if demand.realm is None:
                return None  # the same password, or none that can be had: the registry's own words say more
            raise

    def _expected(self, need: Need) -> _Demand | None:
        demand = self._demands.get(need.key)
        if demand is None and (usual := self._last_demand.get(need.endpoint.base)) is not None:
            return _Demand(usual.realm, usual.service, need.scopes if usual.realm else ())
        return demand

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
        if (lock := self._locks.get(need.key)) is None:
            lock = keep(self._locks, need.key, trio.Lock())
        async with lock:
            now = trio.current_time()
            known = self._headers.get((need.key, demand))
            if known is not None and known.value != refused and known.good_until > now:
                return known.value
            header = await self._newest(need, demand, refused)
            self._headers = {k: header for k, header in self._headers.items() if header.good_until > now}
            self._headers[need.key, demand] = header
            return header.value

    async def _newest(self, need: Need, demand: _Demand, refused: str | None) -> _Header:
        """A header from the credential as it is known; if that is refused, from the credential as it is now."""
        host, repository = need.endpoint.credentials_host, need.repository
        credential = await self._credentials.lookup(host, repository)
        try:
            return await self._fetch(need, demand, credential, refused)
        except RegistryDenied:
            if credential is None:
                raise
            newer = await self._credentials.lookup(host, repository, fresh=True)
            if newer is None or newer == credential:
                raise
        return await self._fetch(need, demand, newer, refused)

    async def _fetch(self, need: Need, demand: _Demand, credential: Credential | None, refused: str | None) -> _Header:
        """A header other than `refused`. Raises RegistryDenied: no credential, or one that is refused."""
        now = trio.current_time()
        life_s = _CREDENTIAL_LIFE_S
        if demand.realm is None:
            if credential is None or not credential.password:
                raise RegistryDenied(
                    f"{need.endpoint.host} asks for a user name and a password for {need.repository}, and there are none "
                    f"({self._credentials.absence()}): run `docker login`, or set registry.docker_config"
                )
            value = _basic(credential)
        elif credential is not None and credential.registry_token:
            value = _bearer(credential.registry_token, need.endpoint.host)
        else:
            answer = await self._ask_realm(need, demand, demand.realm, credential)
            life_s = answer.expires_in if answer.expires_in is not None and answer.expires_in > 0 else _TOKEN_LIFE_S
            life_s -= min(_EARLY_S, life_s / 4)
            value = _bearer(answer.token or answer.access_token, demand.realm)
        if value == refused:
            raise RegistryDenied(
                f"{need.endpoint.host} refuses {_whose(credential)} for {need.repository}; log in again"
            )
        return _Header(value, now + life_s)

    async def _ask_realm(self, need: Need, demand: _Demand, realm: str, credential: Credential | None) -> _TokenJson:
        url = httpx.URL(realm)
        if url.host != httpx.URL(need.endpoint.base).host:
            await self._wire.addresses.admit(url, f"the token realm of {need.endpoint.host}")
        if credential is None or not credential.refresh_token:
            return await self._token(need, self._token_request(url, demand, credential), credential)
        configured = credential.refresh_token
        rotation = (need.endpoint.base, realm, demand.service, configured)
        current = self._rotated.get(rotation, configured)
        try:
            answer = await self._token(need, self._oauth_request(url, demand, current), credential)
        except RegistryDenied:
            newest = self._rotated.get(rotation, configured)
            if newest == current:
                # Nobody has got another one meanwhile: it was revoked, or never counted. The one that people wrote down may be good.
                self._rotated.pop(rotation, None)
                newest = configured
            if newest == current:
                raise
            answer = await self._token(need, self._oauth_request(url, demand, newest), credential)
        if answer.refresh_token:
            keep(self._rotated, rotation, answer.refresh_token)
        return answer

    async def _token(self, need: Need, request: httpx.Request, credential: Credential | None) -> _TokenJson:
        """What a token server answers. Raises RegistryDenied: it refuses the credential; RegistryError: no token."""
        url = request.url
        tls = need.endpoint.tls.for_credentials(home=url.host == httpx.URL(need.endpoint.base).host)
        status, body = await self._wire.small_answer(request, _ANSWER_MAX, tls)
        if status in {400, 401, 403}:
            none = f" ({self._credentials.absence()})" if credential is None else ""
            raise RegistryDenied(
                f"{shown(url)} gives no token for {need.repository} to {_whose(credential)}{none} (HTTP {status}): "
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
        return answer

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


def keep(into: dict[_K, _V], key: _K, value: _V) -> _V:
    """Put it in as the newest; the oldest leaves when there are too many."""
    into.pop(key, None)
    into[key] = value
    if len(into) > KEPT:
        del into[next(iter(into))]
    return value


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
