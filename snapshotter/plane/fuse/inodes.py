"""Inode numbers of the FUSE mount: a pure function of (session slot, layer number, node).

A later process that serves the same connection must give the same numbers without having heard of any. The layout is
part of the record kept for it, as `INODE_REVISION`:

    bits 60-63   0, left to overlayfs, which marks its layers there (xino)
    bits 52-59   session slot (8)
    bits 26-51   layer number n (26), 0 for the directories above the layers
    bits  0-25   node (26): a position in the layer's index; where n is 0
        1 and 25 bits   a file of the gate, by its number
        01 and 24 bits  a directory of the gate: number of the sharing domain (15), shard (9)
        else            one of `Fixed`

A shard is the first two hex digits of the names in it; 256 stands for the directory that holds the shards.
"""

from enum import IntEnum
from typing import Final, NamedTuple, NewType

from snapshotter.errors import PlaneError

Inode = NewType("Inode", int)

INODE_REVISION: Final = 2
NODE_BITS: Final = 26
LAYER_BITS: Final = 26
SLOT_BITS: Final = 8

_NODE_MASK: Final = (1 << NODE_BITS) - 1
_LAYER_MASK: Final = (1 << LAYER_BITS) - 1
_SLOT_SHIFT: Final = NODE_BITS + LAYER_BITS
_SLOT_MASK: Final = (1 << SLOT_BITS) - 1


class Fixed(IntEnum):
    """What lies above the layers. The kernel wants the root to be 1."""

    ROOT = 1
    SESSION = 2
    LAYERS = 3
    READY = 4
    GATE = 5
    PLACE = 6
    FAIL = 7


GATE_FILE: Final = 1 << 25
GATE_DIRECTORY: Final = 1 << 24
SHARDS: Final = 256
"""As a shard: the directory above them."""

_DOMAIN_BITS: Final = 15
_SHARD_BITS: Final = 9


class GateDirectory(NamedTuple):
    """A directory of the gate: of one sharing domain, or one of its shards."""

    domain: int
    shard: int


def gate_directory_node(directory: GateDirectory) -> int:
    """The node of a directory of the gate.

    Raises:
        PlaneError: more sharing domains than an inode number has room for.
    """
    if not 0 <= directory.domain < 1 << _DOMAIN_BITS:
        raise PlaneError(
            f"sharing domain number {directory.domain} does not fit the {_DOMAIN_BITS} bits of an inode number"
        )
    return GATE_DIRECTORY | directory.domain << _SHARD_BITS | directory.shard


def gate_directory(node: int) -> GateDirectory:
    """The directory that `gate_directory_node` gave this node."""
    rest = node & ~GATE_DIRECTORY
    return GateDirectory(rest >> _SHARD_BITS, rest & (1 << _SHARD_BITS) - 1)


def gate_file_node(number: int) -> int:
    """The node of a file of the gate.

    Raises:
        PlaneError: the number does not fit.
    """
    if not 0 < number < GATE_FILE:
        raise PlaneError(f"gate file number {number} does not fit an inode number")
    return GATE_FILE | number


class Place(NamedTuple):
    """What an inode number says."""

    layer: int
    node: int


def slot_of(session: int) -> int:
    """The slot of a session number. Slots come round; numbers of two sessions never meet in one mount."""
    return session & _SLOT_MASK


class Numbers:
    """The inode numbers of one session."""

    __slots__ = ("_base",)

    def __init__(self, session: int) -> None:
        self._base = slot_of(session) << _SLOT_SHIFT

    def layer_base(self, layer: int) -> int:
        """What to add to a node of layer `layer` (1 and up).

        Raises:
            PlaneError: the number has no room in an inode number.
        """
        if not 0 < layer <= _LAYER_MASK:
            raise PlaneError(f"layer number {layer} does not fit the {LAYER_BITS} bits of an inode number")
        return self._base | layer << NODE_BITS

    def of_node(self, layer: int, node: int) -> Inode:
        """The inode of node `node` in layer `layer`."""
        if not 0 <= node <= _NODE_MASK:
            raise PlaneError(f"node {node} of layer {layer} does not fit the {NODE_BITS} bits of an inode number")
        return Inode(self.layer_base(layer) | node)

    def of_gate(self, node: int) -> Inode:
        """The inode of a node of the gate."""
        return Inode(self._base | node)

    def of_fixed(self, fixed: Fixed) -> Inode:
        """The inode of a directory or file above the layers."""
        return Inode(1) if fixed is Fixed.ROOT else Inode(self._base | fixed)

    def place(self, inode: int) -> Place | None:
        """Where an inode number leads; None if it is not of this session."""
        if inode == Fixed.ROOT:
            return Place(0, Fixed.ROOT)
        if inode >> _SLOT_SHIFT << _SLOT_SHIFT != self._base:
            return None
        return Place((inode >> NODE_BITS) & _LAYER_MASK, inode & _NODE_MASK)
