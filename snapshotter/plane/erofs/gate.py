"""The gate: the moment when an overlay of the erofs plane looks for content that is not on the node.

Overlayfs asks for a file by name at its first open: in `objects`, then here, then in `late`, and last where every name
is an I/O error. A small file is fetched while it asks, put into the store and linked where it looks next, and the answer
is "no such file": from then on the kernel reads it by itself. A large file gets an inode and is served in ranges.

A process that waits in a lookup cannot be killed, and neither can others that ask for the same name. So nobody waits long:
after `PATIENCE_S` a small file gets an inode too, and the waiting goes on in reads, which can be killed. An inode that was
given is given again for as long as the mount lives: an overlay that found it asks again by name, and a program would see
ESTALE if that failed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from snapshotter.errors import SnapshotterError, StoreError, WaiterKilled
from snapshotter.layer.waits import Waits

PATIENCE_S: Final = 1.5
KILL_CHECK_S: Final = 0.25
"""House, trap 9: the kernel does not say that the process which waits in a lookup was killed."""

DISPUTE_S: Final = 30.0
"""So long a file waits for its content where layers disagree about its size; another waiter for it cannot be killed then."""

SIGKILL_BIT: Final = 1 << 8
DIGEST_DIGITS: Final = 64
"""A name begins with so many hex digits of the content's sha256."""

log = logging.getLogger(__name__)


class Contents(Protocol):
    """What the gate needs of the layer room; used on the trio thread."""

    async def size(self, domain: str, name: str) -> int | None:
        """Bytes of a file, as a layer says that names it; None if none does."""

    async def disputed(self, domain: str, name: str) -> bool:
        """Whether layers give it different sizes: one of them lies."""

    async def bring(self, domain: str, name: str) -> bool:
        """Have a file linked where overlays look last; False if it is only to be had in parts. Raises SnapshotterError."""

    async def read(self, domain: str, name: str, file_size: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a file with `file_size`; fewer only at its end. Raises SnapshotterError."""


class GateFile(Protocol):
    """A file that has a number."""

    @property
    def number(self) -> int:
        """The number."""

    @property
    def domain(self) -> str:
        """Its sharing domain."""

    @property
    def name(self) -> str:
        """Its name in the domain's shards."""

    @property
    def size(self) -> int:
        """Bytes, as the kernel was told."""


class Numbers(Protocol):
    """What the gate needs of the state; blocking, from any thread."""

    def domains(self) -> dict[str, int]:
        """The number of every sharing domain."""

    def gate_files(self) -> Sequence[GateFile]:
        """The files that have a number."""

    def add_gate_file(self, domain: str, name: str, size: int) -> GateFile:
        """Give a file a number that outlives this process. Raises StoreError."""


@dataclass(slots=True)
class _Delivery:
    """A file on its way; `whole` once it is linked where overlays look next. `began` by trio's clock."""

    began: float = field(default_factory=trio.current_time)
    ended: trio.Event = field(default_factory=trio.Event)
    whole: bool = False
    error: SnapshotterError | None = None


class Gate:
    """Fulfils the FUSE mount's `ServedGate`. Used on the trio thread, but for `disputes`.

    `nursery` is where files are brought, so that a process that goes cancels nobody else's wait.
    """

    def __init__(
        self,
        contents: Contents,
        numbers: Numbers,
        nursery: trio.Nursery,
        place: str,
        *,
        patience_s: float = PATIENCE_S,
        killed: Callable[[int], bool] | None = None,
        open_waits: Waits | None = None,
    ) -> None:
        """`killed` says whether a process has been killed; None reads /proc. `open_waits` is told who waits here."""
        self.place = place.encode("ascii")
        self._contents = contents
        self._numbers = numbers
        self._nursery = nursery
        self._patience_s = patience_s
        self._killed = killed or is_killed
        self._open_waits = open_waits or Waits()
        self._domains: dict[str, int] = {}
        self._domain_names: dict[int, str] = {}
        self._files: dict[tuple[str, str], GateFile] = {}
        self._by_number: dict[int, GateFile] = {}
        self._deliveries: dict[tuple[str, str], _Delivery] = {}
        # Numbers are written one after the other anyway. Those of many who wait for one dead registry come all at once, and
        # would take every thread.
        self._recorder = trio.CapacityLimiter(1)

    async def load(self) -> None:
        """Take over what is recorded. Raises StoreError."""
        await self._load_domains()
        for file in await trio.to_thread.run_sync(self._numbers.gate_files):
            self._remember(file)

    async def domain_number(self, name: str) -> int | None:
        """The number of a sharing domain; a new one is looked up in the state. Raises StoreError."""
        if name not in self._domains:
            await self._load_domains()
        return self._domains.get(name)

    def domain_name(self, number: int) -> str | None:
        """The sharing domain with that number."""
        return self._domain_names.get(number)

    def file(self, number: int) -> GateFile | None:
        """The file that was given this number."""
        return self._by_number.get(number)

    def brought_since(self, domain: str, digest: bytes) -> float | None:
        """Since when a small file is being brought, by trio's clock; None if it is not."""
        delivery = self._deliveries.get((domain, digest.hex()))
        return delivery.began if delivery else None

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a file that has a number. Raises SnapshotterError."""
        file = self._by_number.get(number)
        if file is None:
            raise StoreError(f"file {number} of the gate is not known to this daemon")
        return await self._contents.read(file.domain, file.name, file.size, offset, size)

    def disputes(self, domain: str, size_of: Callable[[bytes], int | None]) -> bool:
        """Whether a layer gives a small file another size than the kernel was told; from any thread.

        `size_of` gives the layer's size for a raw digest, or None. One of the two lies, and a container of this layer must
        not find the inode that was made by the other's word.
        """
        return any(
            file.domain == domain
            and "-" not in file.name
            and size_of(bytes.fromhex(file.name)) not in (None, file.size)
            for file in tuple(self._files.values())
        )

    async def lookup(self, domain: str, name: str, pid: int) -> GateFile | None:
        """A file to serve through FUSE; None once it lies where the overlay looks next.

        Raises:
            SnapshotterError: no layer can deliver it.
            WaiterKilled: the process that waits was killed.
        """
        key = domain, name
        if (known := self._files.get(key)) is not None:
            return known
        size = await self._contents.size(domain, name)
        if size is None:
            raise StoreError(f"no layer on this node names file {name}")
        delivery = self._deliveries.get(key)
        if delivery is None:
            delivery = self._deliveries[key] = _Delivery()
            self._nursery.start_soon(self._deliver, key, delivery)
        with self._open_waits.lookup(domain, bytes.fromhex(name[:DIGEST_DIGITS]), pid):
            await self._wait_for(key, delivery, pid)
        if delivery.whole:
            return None
        if delivery.error is not None:
            raise delivery.error.with_traceback(None)
        return await self._give_inode(domain, name, size)

    async def _wait_for(self, key: tuple[str, str], delivery: _Delivery, pid: int) -> None:
        """Wait as long as one may in a lookup. Raises StoreError, WaiterKilled."""
        # From the delivery's beginning: of those who wait for one name the kernel lets one ask after the other, and each
        # that was killed would have the next begin anew, whom meanwhile no signal reaches.
        await self._wait(delivery, pid, delivery.began + self._patience_s)
        undecided = not (delivery.whole or delivery.error)
        if undecided and await self._contents.disputed(*key):
            # An inode needs a size, and one of the layers lies about it: only the content can tell.
            await self._wait(delivery, pid, delivery.began + DISPUTE_S)
            if not (delivery.whole or delivery.error):
                raise _dispute(key[1])

    async def _wait(self, delivery: _Delivery, pid: int, deadline: float) -> None:
        while not delivery.ended.is_set() and (left := deadline - trio.current_time()) > 0:
            if self._killed(pid):
                raise WaiterKilled(f"process {pid} was killed while it waited for a file")
            with trio.move_on_after(min(left, KILL_CHECK_S)):
                await delivery.ended.wait()

    async def _deliver(self, key: tuple[str, str], delivery: _Delivery) -> None:
        try:
            delivery.whole = await self._contents.bring(*key)
        except SnapshotterError as error:
            delivery.error = error
        except Exception as error:
            # The nursery is the node's: a fault with one file must not end every mount.
            log.exception("bringing file %s failed", key[1])
            delivery.error = SnapshotterError(f"internal error while a file was brought: {error!r}")
        finally:
            del self._deliveries[key]
            delivery.ended.set()

    async def _give_inode(self, domain: str, name: str, size: int) -> GateFile:
        record = partial(self._numbers.add_gate_file, domain, name, size)
        made = await trio.to_thread.run_sync(record, limiter=self._recorder)
        if (domain, name) not in self._files and await self._contents.disputed(domain, name):
            raise _dispute(name)  # a layer that came meanwhile
        return self._remember(made)

    def _remember(self, file: GateFile) -> GateFile:
        """Keep the first answer: two may be on their way."""
        kept = self._files.setdefault((file.domain, file.name), file)
        self._by_number[file.number] = file
        return kept

    async def _load_domains(self) -> None:
        self._domains = await trio.to_thread.run_sync(self._numbers.domains)
        self._domain_names = {number: name for name, number in self._domains.items()}


def _dispute(name: str) -> StoreError:
    return StoreError(
        f"images of this node disagree about the size of file {name}, and it could not be fetched to tell which is right; "
        "try again, or remove the image that you trust less"
    )


def is_killed(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether SIGKILL waits for a process or thread; False where it cannot be seen (another pid namespace).

    Source: proc(5), /proc/pid/status: SigPnd and ShdPnd, signals pending for the thread and the process, in hex.
    """
    if pid <= 0:
        return False
    try:
        status = (proc / str(pid) / "status").read_bytes()
    except OSError:
        return False
    pending = 0
    for line in status.splitlines():
        if line.startswith((b"SigPnd:", b"ShdPnd:")):
            pending |= int(line.split()[1], 16)
    return bool(pending & SIGKILL_BIT)
