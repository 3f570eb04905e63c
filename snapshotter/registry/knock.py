"""While a request waits: is its server back, or another one that stands for the same registry?

A request may have gone to a server that was away, or through a network that was cut, and is then never answered, however
well the server is since. Whoever waits for it would wait out the timeouts, which are long because slow answers are usual.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from snapshotter.errors import RegistryError
from snapshotter.registry.auth import Need
from snapshotter.registry.health import Health, Knocking
from snapshotter.registry.hosts import Endpoint
from snapshotter.registry.retry import Transient
from snapshotter.registry.wire import Listen, Wire

ANSWER_MAX = 16 << 10
WELL_S = 2.5
SICK_S = 1.0
"""How long a request waits in peace: one to a server that answered the last time, and one to a server that did not."""

EVERY_S = 1.0
LONGEST_S = 1.5
"""Between two knocks, and what one may take. Both and a little more is what a reader loses once a server is back."""


async def knock(wire: Wire, endpoint: Endpoint, timeout_s: float | None = None) -> None:
    """Return when the server has answered a request for nothing, without a credential.

    Raises:
        Transient, RegistryError: it did not.
    """
    request = wire.request(
        "GET",
        f"{endpoint.base}{endpoint.prefix}/",
        headers=endpoint.headers,
        timeout_s=timeout_s,
        connect_timeout_s=timeout_s or endpoint.connect_timeout_s,
    )
    await wire.small_answer(request, ANSWER_MAX, endpoint.tls)


def listener(wire: Wire, health: Health, asked: Need, others: Sequence[Need]) -> Listen:
    """What returns when a request to `asked` should be made anew, to it or to one of `others`: one of them has come back.

    A server that answers knocks from the start is slow and is waited for, or was away so shortly that nobody saw it: the
    request is made once more beside the first.
    """

    async def listen(beside: Callable[[], None]) -> None:
        lost, doubled = health.is_sick(asked), False
        await trio.sleep(SICK_S if lost else WELL_S)
        while True:
            back = await _answering(wire, health, [asked, *others], one_will_do=lost)
            for need in [asked] if back and lost else [asked, *others]:
                # Nobody is to find out by a request of his own.
                if need not in back and not health.is_sick(need):
                    health.failed(need)
            lost = lost or asked not in back
            if back and lost:
                for need in back:
                    health.answered(need)
                return
            if back and not doubled:
                doubled = True
                beside()
            await trio.sleep(EVERY_S)

    return listen


async def _answering(wire: Wire, health: Health, needs: Sequence[Need], *, one_will_do: bool) -> list[Need]:
    """Those that answer a knock."""
    back: list[Need] = []

    async def ask(need: Need) -> None:
        if await _answers(wire, health, need):
            back.append(need)
            if one_will_do:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for need in needs:
            nursery.start_soon(ask, need)
    return back


async def _answers(wire: Wire, health: Health, need: Need) -> bool:
    """Whether a server answers a knock. Many may wait for it, who would take the loop and what is left of the server."""
    base = need.endpoint.base
    while (newest := health.knocks.get(base)) is not None and (
        not newest.ended.is_set() or newest.began > trio.current_time() - EVERY_S
    ):
        await newest.ended.wait()
        if newest.came is not None:
            return newest.came
    health.knocks = {other: one for other, one in health.knocks.items() if not one.ended.is_set()}
    ours = health.knocks[base] = Knocking(trio.current_time())
    try:
        came = False
        with trio.move_on_after(LONGEST_S), suppress(Transient, RegistryError):
            await knock(wire, need.endpoint, LONGEST_S)
            came = True
        ours.came = came
        return came
    finally:
        if ours.came is None and health.knocks.get(base) is ours:
            del health.knocks[base]
        ours.ended.set()
