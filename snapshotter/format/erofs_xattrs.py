"""Extended attributes of an EROFS image: what lies behind each inode, and the table that inodes share."""

from collections import Counter
from collections.abc import Mapping

from snapshotter.errors import FormatError

from .erofs_layout import XATTR, XATTR_HEADER, XATTR_PREFIXES, XATTR_SHARED_MAX, XATTR_WORDS_MAX
from .layout import NONE

METACOPY = b"trusted.overlay.metacopy"
REDIRECT = b"trusted.overlay.redirect"
"""Source: linux/Documentation/filesystems/overlayfs.rst, "Metadata only copy up" and "Data-only lower layers"."""

_LONE_MAX = 1024
"""An attribute of more bytes goes into the table even if one inode alone has it: inodes stay small."""

Pair = tuple[bytes, bytes]


class XattrBodies:
    """The bodies behind inodes, which repeat a lot, and the table of what several inodes have."""

    def __init__(self, sets: Mapping[int, Mapping[bytes, bytes]], uses: Mapping[int, int]) -> None:
        """`sets` are an index's sets by row, `uses` says how many inodes have each.

        Raises:
            FormatError: an attribute that the format cannot hold.
        """
        self.table = bytearray()
        self._sets = sets
        self._ids: dict[Pair, int] = {}
        self._bodies: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._share((METACOPY, b""))
        often: Counter[Pair] = Counter()
        for row, count in uses.items():
            for pair in sets[row].items():
                often[pair] += count
        for row in sorted(uses):
            for pair in sets[row].items():
                if pair not in self._ids and (often[pair] > 1 or len(pair[1]) > _LONE_MAX):
                    self._share(pair)

    def body(self, row: int, redirect_size: int = 0) -> tuple[bytes, int]:
        """What stands behind an inode with the set `row`, and its count of words for the inode.

        With a `redirect_size` it has `metacopy`, and a redirect whose value is left as zeros: that ends where the body
        ends, but for padding to a multiple of 4.

        Raises:
            FormatError: more than the format takes.
        """
        key = row, redirect_size
        found = self._bodies.get(key)
        if found is None:
            found = self._bodies[key] = self._build(row, redirect_size)
        return found

    def _build(self, row: int, redirect_size: int) -> tuple[bytes, int]:
        pairs = [] if row == NONE else list(self._sets[row].items())
        if redirect_size:
            pairs.append((METACOPY, b""))
        if not pairs:
            return b"", 0
        shared = [self._ids[pair] for pair in pairs if pair in self._ids]
        own = b"".join(_entry(*pair) for pair in pairs if pair not in self._ids)
        if redirect_size:
            own += _entry(REDIRECT, bytes(redirect_size))
        words = len(shared) + len(own) // 4 + 1
        if len(shared) > XATTR_SHARED_MAX or words > XATTR_WORDS_MAX:
            raise FormatError(f"a file has {len(pairs)} extended attributes, more than an EROFS inode takes")
        header = bytes(4) + bytes((len(shared),)) + bytes(XATTR_HEADER - 5)
        return header + b"".join(number.to_bytes(4, "little") for number in shared) + own, words

    def _share(self, pair: Pair) -> None:
        self._ids[pair] = len(self.table) // 4
        self.table += _entry(*pair)


def _entry(name: bytes, value: bytes) -> bytes:
    """One attribute as it lies on disk."""
    found = next(((prefix, number) for prefix, number in XATTR_PREFIXES if name.startswith(prefix)), None)
    if found is None:
        raise FormatError(f"EROFS has no place for the extended attribute {name!r}")
    prefix, number = found
    if len(value) > 0xFFFF:
        raise FormatError(f"the extended attribute {name!r} has {len(value)} bytes, EROFS takes {0xFFFF}")
    rest = name[len(prefix) :]
    entry = XATTR.pack(len(rest), number, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)
