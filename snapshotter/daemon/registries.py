"""The registry client, made after the kernel is answered: its modules take longer to load than all that a reader waits for."""

# ruff: noqa: PLC0415 (loaded when the client is made)

from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import trio

from snapshotter.config import Config

if TYPE_CHECKING:
    from snapshotter.registry.client import Registry
    from snapshotter.registry.retry import RetryCounts

CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RegistryClient:
    """The client and what it counts."""

    registry: "Registry"
    retries: "RetryCounts"


def load() -> None:
    """Have the modules of the client. Takes a tenth of a second; in a thread of its own it holds nobody up."""
    import_module("snapshotter.registry.client")


async def reach_registries(config: Config, undo: AsyncExitStack) -> RegistryClient:
    """Make the client; `undo` closes it. No request is made."""
    await trio.to_thread.run_sync(load)
    from snapshotter.registry.client import Registry
    from snapshotter.registry.retry import RetryPolicy

    policy = RetryPolicy(config.registry.retries)
    registry = Registry(config.registry, config.fetch.connections_per_host, policy=policy)
    undo.push_async_callback(_close, registry)
    return RegistryClient(registry, policy.counts)


async def _close(registry: "Registry") -> None:
    with trio.move_on_after(CLOSE_TIMEOUT_S):
        await registry.aclose()
