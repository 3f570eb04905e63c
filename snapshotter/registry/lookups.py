"""Host names to addresses: one thread for a name, however many ask, and none of those that disk reads use.

trio gives each lookup one of the 40 threads that it has for everything, and one whose asker has given up keeps it until
the system's resolver gives up too. With a name server that does not answer, 40 reads of one image's registry would stop
everything of the node that needs a thread [tried].
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import trio

Lookup: TypeAlias = Callable[..., list[Any]]
"""As socket.getaddrinfo."""


@dataclass(slots=True)
class _Search:
    """A lookup on its way in a thread of its own."""

    ended: trio.Event = field(default_factory=trio.Event)
    found: list[Any] = field(default_factory=list)
    error: OSError | UnicodeError | None = None


class SharedLookups(trio.abc.HostnameResolver):
    """Give it to `trio.socket.set_custom_hostname_resolver`. Used on the trio thread."""

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._searches: dict[tuple[object, ...], _Search] = {}

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 (trio's name)
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As socket.getaddrinfo; who asks what somebody asks already gets the same answer."""
        asked = host, port, family, type, proto, flags
        search = self._searches.get(asked)
        if search is None:
            search = self._searches[asked] = _Search()
            self._begin(asked, search)
        await search.ended.wait()
        if search.error is not None:
            raise search.error.with_traceback(None)
        return list(search.found)

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """As socket.getnameinfo; nothing here asks for it."""
        raise NotImplementedError

    def _begin(self, asked: tuple[Any, ...], search: _Search) -> None:
        token = trio.lowlevel.current_trio_token()

        def look() -> None:
            try:
                search.found = self._lookup(*asked)
            except (OSError, UnicodeError) as error:
                search.error = error

        def end() -> None:
            del self._searches[asked]
            search.ended.set()

        def deliver(_: object) -> None:
            # The daemon may have ended meanwhile.
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(end)

        trio.lowlevel.start_thread_soon(look, deliver, name=f"lookup of {asked[0]!r}")
