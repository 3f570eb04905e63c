"""Storing blobs and manifests in a registry.

Source: OCI Distribution Specification 1.1, pushing blobs (POST then PUT), mounting blobs, pushing manifests.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import quote

import httpx
import trio

from snapshotter.errors import FormatError, RegistryError
from snapshotter.registry.auth import Need
from snapshotter.registry.exchange import Call, Exchange, at_endpoint, refusal
from snapshotter.registry.redirect import next_hop
from snapshotter.registry.retry import Transient
from snapshotter.registry.wire import discard

# What a push reads: a file, or a function that begins the content anew each time it is called (a retry calls it again).
Source = Path | Callable[[], AsyncGenerator[bytes, None]]

_PIECE = 256 << 10
# A registry answers a PUT when it has hashed and moved the whole blob.
_COMMIT_TIMEOUT_S = 300.0


OnProgress = Callable[[int], None]
"""Takes how many bytes were sent since it was last called; less than nothing where they must be sent again."""


def unheard(size: int) -> None:
    """Be told of progress and do nothing."""


class Upload(httpx.AsyncByteStream):
    """The body of an upload: exactly `size` bytes of `source`.

    A class, not an asynchronous generator: httpx drops a body half read when the server answers early.
    """

    def __init__(
        self, source: AsyncGenerator[bytes, None], size: int, what: str, on_progress: OnProgress = unheard
    ) -> None:
        self._source = source
        self._left = size
        self._what = what
        self._on_progress = on_progress
        self._told = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next piece.

        Raises:
            FormatError: the source has more or fewer bytes than were announced.
        """
        try:
            piece = await anext(self._source)
        except StopAsyncIteration:
            if self._left:
                raise FormatError(f"{self._what}: the content ended {self._left} bytes early") from None
            raise
        self._left -= len(piece)
        if self._left < 0:
            raise FormatError(f"{self._what}: the content is longer than its size says")
        self._told += len(piece)
        self._on_progress(len(piece))
        return piece

    def take_back(self) -> None:
        """Say that what was sent does not count."""
        self._on_progress(-self._told)
        self._told = 0


async def blob_exists(exchange: Exchange, need: Need, digest: str) -> bool:
    """Whether the repository has the blob; a registry that knows no HEAD counts as no."""
    call = Call(need, "HEAD", at_endpoint(need, f"blobs/{digest}"), f"blob {digest}", follow=False)
    async with exchange.open(call) as answer:
        status = answer.response.status_code
        if status in {404, 405}:
            return False
        # A redirect leads to a store whose signature may be for GET only; it would not be there without the blob.
        if 200 <= status < 400:
            return True
        raise await refusal(answer, call.what)


async def mount_blob(exchange: Exchange, need: Need, digest: str, mount_from: str) -> bool:
    """One try to have a blob from the repository `mount_from` of the same registry; whether that is done."""
    what = f"mount of {digest} from {mount_from} to {need.endpoint.registry}/{need.repository}"
    # One that will not begins an upload, which nobody goes on with: it costs nothing, and leave to delete it is seldom given.
    return await _begin(exchange, need, digest, mount_from, what) is None


async def push_blob(
    exchange: Exchange,
    need: Need,
    digest: str,
    size: int,
    source: Source,
    on_progress: OnProgress = unheard,
) -> None:
    """One try to store a blob that is not there."""
    what = f"upload of {digest} to {need.endpoint.registry}/{need.repository}"
    location = await _begin(exchange, need, digest, None, what)
    if location is None:
        return
    separator = "&" if location.query else "?"
    location = httpx.URL(f"{location}{separator}digest={quote(digest, safe='')}")
    pieces = _file_pieces(source) if isinstance(source, Path) else source()
    upload = Upload(pieces, size, what, on_progress)
    async with aclosing(pieces):
        call = Call(
            need,
            "PUT",
            location,
            what,
            headers={"content-length": str(size), "content-type": "application/octet-stream"},
            content=upload,
            timeout_s=_COMMIT_TIMEOUT_S,
            follow=False,
        )
        try:
            async with exchange.open(call) as answer:
                if answer.response.status_code not in {201, 202, 204}:
                    raise await refusal(answer, what)
                await discard(answer.response)
        except (RegistryError, Transient):
            upload.take_back()
            raise


async def push_manifest(exchange: Exchange, need: Need, selector: str, raw: bytes, media_type: str) -> str:
    """One try to store a manifest under `selector`, a tag or its digest; its digest."""
    what = f"manifest {selector} of {need.endpoint.registry}/{need.repository}"
    call = Call(
        need,
        "PUT",
        at_endpoint(need, f"manifests/{selector}"),
        what,
        headers={"content-type": media_type},
        content=raw,
        timeout_s=_COMMIT_TIMEOUT_S,
        follow=False,
    )
    async with exchange.open(call) as answer:
        if not 200 <= answer.response.status_code < 300:
            raise await refusal(answer, what)
        await discard(answer.response)
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


async def _begin(exchange: Exchange, need: Need, digest: str, mount_from: str | None, what: str) -> httpx.URL | None:
    """Open an upload and return its address; None if the blob was mounted instead."""
    url = at_endpoint(need, "blobs/uploads/")
    if mount_from is not None:
        url = url.copy_merge_params({"mount": digest, "from": mount_from})
    call = Call(need, "POST", url, what, headers={"content-length": "0"}, follow=False)
    async with exchange.open(call) as answer:
        response = answer.response
        if response.status_code == 201 and mount_from is not None:
            await discard(response)
            return None
        if response.status_code != 202:
            raise await refusal(answer, what)
        await discard(response)
        if "location" not in response.headers:
            raise RegistryError(f"{what}: {answer.url.host} opens an upload without saying where (no Location)")
        return next_hop(answer.url, response.headers["location"])


async def _file_pieces(path: Path) -> AsyncGenerator[bytes, None]:
    async with await trio.open_file(path, "rb") as file:
        while piece := await file.read(_PIECE):
            yield piece
