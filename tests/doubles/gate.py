"""What the gate asks, without layers, a store or a database: numbers, and contents that come when a test says so."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from snapshotter.errors import SnapshotterError

DOMAIN = "node"


class NumberedFile(NamedTuple):
    """As `store.state_gate.GateFile`."""

    number: int
    domain: str
    name: str
    size: int


@dataclass
class MemoryNumbers:
    """Numbers that live as long as this object. `fault` is raised instead of giving a new one."""

    known: dict[str, int] = field(default_factory=lambda: {DOMAIN: 1})
    files: dict[tuple[str, str], NumberedFile] = field(default_factory=dict)
    fault: SnapshotterError | None = None

    def domains(self) -> dict[str, int]:
        return dict(self.known)

    def gate_files(self) -> Sequence[NumberedFile]:
        return list(self.files.values())

    def add_gate_file(self, domain: str, name: str, size: int) -> NumberedFile:
        if self.fault is not None:
            raise self.fault
        made = NumberedFile(len(self.files) + 1, domain, name, size)
        return self.files.setdefault((domain, name), made)


@dataclass
class HeldContents:
    """Files that arrive when `arrived` is set for them, or at once where `held` does not name them.

    `outcomes` says what bringing one comes to: whether it is whole, or what is raised.
    """

    sizes: dict[str, list[int]]
    """By name: the size by each layer that names it."""
    held: set[str] = field(default_factory=set)
    outcomes: dict[str, bool | Exception] = field(default_factory=dict)
    brought: list[str] = field(default_factory=list)
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    arrived: dict[str, trio.Event] = field(default_factory=lambda: defaultdict(trio.Event))

    async def size(self, domain: str, name: str) -> int | None:
        return self.sizes[name][0] if domain == DOMAIN and name in self.sizes else None

    async def disputed(self, domain: str, name: str) -> bool:
        return len(set(self.sizes[name])) > 1

    async def bring(self, domain: str, name: str) -> bool:
        self.brought.append(name)
        await trio.lowlevel.checkpoint()
        if name in self.held:
            await self.arrived[name].wait()
        outcome = self.outcomes.get(name, True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def read(self, domain: str, name: str, file_size: int, offset: int, size: int) -> bytes:
        self.reads.append((name, offset, size))
        await trio.lowlevel.checkpoint()
        return bytes(min(size, file_size - offset))
