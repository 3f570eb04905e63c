"""What the FUSE handlers need of a layer: the seams to `layer` and `format`, as protocols."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class NodeAttributes(Protocol):
    """What stat shows of a node; `size` in bytes, `mode` with the type bits, `rdev` as os.makedev gives it."""

    @property
    def mode(self) -> int:
        """Permissions and type."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def mtime_ns(self) -> int:
        """Unix time in nanoseconds."""

    @property
    def nlink(self) -> int:
        """Link count."""

    @property
    def rdev(self) -> int:
        """Device number."""


class ServedIndex(Protocol):
    """The tree of a layer. Every answer is a pure function of the layer, and immediate."""

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The node of that name, if there is one."""

    def parent(self, node: int) -> int:
        """The directory above a directory."""

    def attributes(self, node: int) -> NodeAttributes:
        """What stat shows."""

    def entries(self, directory: int, start: int) -> Iterable[tuple[int, bytes, int]]:
        """(position + 1, name, node) from position `start`, in an order that never changes, without "." and ".."."""

    def readlink(self, node: int) -> bytes:
        """The target of a symbolic link."""

    def xattrs(self, node: int) -> Mapping[bytes, bytes]:
        """Extended attributes; of `trusted.*` only what overlayfs must see."""


class ServedLayer(Protocol):
    """One attached layer."""

    @property
    def number(self) -> int:
        """Its layer number."""

    @property
    def index(self) -> ServedIndex:
        """Its tree."""

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a regular file, fewer only at its end; else SnapshotterError.

        The buffer is the caller's: never a view of a file mapping.
        """


class ServedShelf(Protocol):
    """The attached layers by number."""

    def get(self, number: int) -> ServedLayer | None:
        """The layer, or None if it is not attached."""


class ServedFile(Protocol):
    """A file that the gate serves by an inode of its own."""

    @property
    def number(self) -> int:
        """What its inode number is made of."""

    @property
    def size(self) -> int:
        """Bytes."""


class ServedGate(Protocol):
    """Where overlays ask for contents that are not on the node."""

    @property
    def place(self) -> bytes:
        """The one name in the gate's top directory."""

    async def domain_number(self, name: str) -> int | None:
        """The number of a sharing domain; None if there is no such domain."""

    def domain_name(self, number: int) -> str | None:
        """The sharing domain with that number."""

    async def lookup(self, domain: str, name: str, pid: int) -> ServedFile | None:
        """A file to be served through FUSE, or None: the overlay finds it where it looks next.

        Raises:
            SnapshotterError: the content cannot be had.
            WaiterKilled: process `pid`, which waits for this, was killed.
        """

    def file(self, number: int) -> ServedFile | None:
        """The file that was given this number."""

    async def read(self, number: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` verified bytes of a file, fewer only at its end; else SnapshotterError."""
