"""One request and what it takes to get its answer: leave, redirects, and refusals in our words."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import msgspec

from snapshotter.errors import BlobMissing, RegistryDenied, RegistryError
from snapshotter.registry.auth import Authenticator, Need
from snapshotter.registry.redirect import HOPS_MAX, REDIRECTS, next_hop, same_origin
from snapshotter.registry.retry import Transient
from snapshotter.registry.wire import Listen, Wire, discard, read_bounded, transient_status

_ERROR_MAX = 16 << 10
_CODE = re.compile(r"[A-Z][A-Z_]{2,39}")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a registry's own API. `what` names its object in errors.

    `listen` returns when it should be made anew instead of being waited for (`registry.knock`).
    """

    need: Need
    method: str
    url: httpx.URL
    what: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | httpx.AsyncByteStream | None = None
    timeout_s: float | None = None
    follow: bool = True
    listen: Listen | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with its body still to be read, and the address that gave it."""

    response: httpx.Response
    url: httpx.URL
    redirected: bool


class _ErrorJson(msgspec.Struct):
    code: str = ""


class _ErrorsJson(msgspec.Struct):
    errors: list[_ErrorJson] = msgspec.field(default_factory=list)


class Exchange:
    """Sends calls. Credentials and configured headers reach the endpoint's own origin and nobody else."""

    def __init__(self, wire: Wire, auth: Authenticator) -> None:
        self.wire = wire
        self._auth = auth

    @asynccontextmanager
    async def open(self, call: Call, target: httpx.URL | None = None) -> AsyncIterator[Answer]:
        """Yield the final answer to `call`, whatever its status, but those that another try may change.

        `target` is where an earlier redirect of the same call led: it is asked instead of the registry.

        Raises:
            Transient: no answer, or a status that may be another the next time.
            RegistryDenied: no credential that the registry accepts.
            RegistryError: redirects in a circle, to nowhere or to a place that is refused.
        """
        api = httpx.URL(call.need.endpoint.base)
        url = target or call.url
        hops = 0
        authorization = await self._auth.header(call.need) if same_origin(url, api) else None
        renewed = False
        while True:
            home = same_origin(url, api)
            request = self._request(call, url, authorization if home else None, home=home)
            tls = call.need.endpoint.tls if home else call.need.endpoint.tls.elsewhere()
            async with aclosing(await self.wire.send(request, tls, call.listen if home else None)) as response:
                asked_itself = target is None and hops == 0
                if asked_itself and not renewed and response.status_code in {401, 403}:
                    fresh = await self._leave(call, response, authorization)
                    renewed = True
                    if fresh is not None:
                        authorization = fresh
                        continue
                if call.follow and response.status_code in REDIRECTS:
                    await discard(response)
                    hops += 1
                    if hops > HOPS_MAX:
                        raise RegistryError(f"{call.what}: redirected in a circle, or more than {HOPS_MAX} times")
                    url = next_hop(url, response.headers.get("location"))
                    if not same_origin(url, api):
                        await self.wire.addresses.admit(url, f"{call.what}: a redirect")
                    continue
                if (again := transient_status(response)) is not None:
                    await discard(response)
                    raise again
                yield Answer(response, url, redirected=url != call.url)
                return

    async def _leave(self, call: Call, response: httpx.Response, authorization: str | None) -> str | None:
        """Another Authorization header after a 401 or 403, None if there is none to try."""
        spent = isinstance(call.content, httpx.AsyncByteStream)
        if response.status_code == 401:
            await discard(response)
            fresh = await self._auth.answer(call.need, response, authorization)
            if spent:
                raise Transient(f"{call.what}: the token expired, and the content must be sent again")
            return fresh
        if authorization is None or spent:
            return None
        return await self._auth.renew(call.need, authorization)

    def _request(self, call: Call, url: httpx.URL, authorization: str | None, *, home: bool) -> httpx.Request:
        headers = dict(call.headers)
        connect_timeout_s = None
        if home:
            headers = {**call.need.endpoint.headers, **headers}
            connect_timeout_s = call.need.endpoint.connect_timeout_s
        if authorization is not None:
            headers["authorization"] = authorization
        return self.wire.request(
            call.method,
            url,
            headers=headers,
            content=call.content,
            timeout_s=call.timeout_s,
            connect_timeout_s=connect_timeout_s,
        )


async def refusal(answer: Answer, what: str) -> RegistryError:
    """The error that a status other than the hoped for means.

    Of the body only the registry's error code is quoted: the rest is anybody's text, and may echo what was sent.
    """
    response = answer.response
    status = response.status_code
    code = await _error_code(response)
    said = f"{answer.url.netloc.decode()} answers HTTP {status}{f' ({code})' if code else ''} to {what}"
    if status == 401:
        return RegistryDenied(f"{said}: the credentials were refused; log in again")
    if status == 403:
        return RegistryDenied(f"{said}: these credentials, or none, do not allow it")
    if status in {404, 410}:
        return BlobMissing(f"{said}: it is not there, or not for these credentials")
    if status == 405:
        return RegistryError(f"{said}: this registry does not allow that; it may be read-only or a mirror")
    if status == 407:
        return RegistryDenied(f"{said}: the proxy asks for credentials; put them into the proxy's address")
    if status == 413:
        return RegistryError(f"{said}: too large for this registry, or for a proxy before it")
    return RegistryError(said)


async def _error_code(response: httpx.Response) -> str:
    """The first error code of a registry's JSON error body, if it looks like one."""
    try:
        body = await read_bounded(response, _ERROR_MAX)
        errors = msgspec.json.decode(body, type=_ErrorsJson).errors
    except (RegistryError, Transient, msgspec.MsgspecError, RecursionError, ValueError):
        return ""
    return next((error.code for error in errors if _CODE.fullmatch(error.code)), "")


def at_endpoint(need: Need, rest: str) -> httpx.URL:
    """The address of `rest` in the repository; a mirror is told which registry it stands for."""
    url = httpx.URL(need.endpoint.url(need.repository, rest))
    return url.copy_set_param("ns", need.endpoint.namespace) if need.endpoint.namespace else url
