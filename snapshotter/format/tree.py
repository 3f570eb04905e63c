"""The tree that a TOC's entries make, with the rules by which containerd unpacks the same tar.

Entries count in their order: a later one replaces an earlier one of that name, but a directory that is already there
keeps its children and takes the new attributes. Parents that no entry describes are 0755 root:root, and so is the root
in any case: containerd ignores a tar's own root entry. A hard link shares its target's node and sets its attributes;
links to later entries are resolved at the end, as the reference implementation does.

Nodes are packed records until `index_build` numbers them; node 0 is the root.

Source: containerd archive/tar.go (applyNaive, createTarFile) and archive/tar_opts_linux.go; OCI Image Specification 1.1,
layer.md, "Whiteouts".
"""

import stat
import struct
from collections.abc import Iterable

from snapshotter.errors import FormatError

from .attributes import Clock, check_device, check_owner, check_target, check_xattrs, encode, show, split_path
from .chunks import ChunkTable
from .layout import FLAG_DERIVED, NO_DIGEST, NONE, WORD, BuildOptions, Kind
from .limits import TOC_ENTRIES
from .tar_entries import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME
from .toc import Entry

RECORD = struct.Struct("<BBHIIQqIIII32s")
"""kind 1, flags 1, mode 2, uid 4, gid 4, size 8, mtime in ns 8, rdev 4, first 4, count 4, xattr set 4, digest 32 = 76"""

_COUNT_AT, _DIGEST_AT = 36, 44

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."

_LANDMARKS = {PREFETCH_LANDMARK.encode(), NO_PREFETCH_LANDMARK.encode(), TOC_NAME.encode()}
_CAPABILITY = b"security.capability"
_NO_NODE = -1

_TYPES = {
    "dir": (Kind.DIR, stat.S_IFDIR),
    "reg": (Kind.REG, stat.S_IFREG),
    "symlink": (Kind.SYMLINK, stat.S_IFLNK),
    "char": (Kind.CHAR, stat.S_IFCHR),
    "block": (Kind.BLOCK, stat.S_IFBLK),
    "fifo": (Kind.FIFO, stat.S_IFIFO),
}

XattrSet = tuple[tuple[bytes, bytes], ...]


class Tree:
    """Entries so far. `children[node]` maps names to nodes, or to -2 - n for the nth unresolved hard link."""

    def __init__(self, options: BuildOptions) -> None:
        self.records = bytearray()
        self.children: dict[int, dict[bytes, int]] = {}
        self.opaque: set[int] = set()
        self.text = bytearray()
        self.xattr_sets: list[XattrSet] = []
        self._xattr_numbers: dict[XattrSet, int] = {}
        self.chunks = ChunkTable(options)
        self.prefetch_end: int | None = None
        self._clock = Clock()
        self._whiteouts: list[tuple[int, bytes, int]] = []
        self._links: list[tuple[int, bytes, bytes]] = []
        self._open: tuple[int, bytes] | None = None
        self._count = 0
        self._paths: dict[bytes, int] = {}
        self._directory(0o755)
        self._forget_paths()

    def read(self, entries: Iterable[Entry]) -> None:
        """Add all entries of a TOC, then everything that can only be settled at its end.

        Raises:
            FormatError: an entry that is not sound.
        """
        add_chunk = self.chunks.more
        for entry in entries:
            if entry.type == "chunk":
                add_chunk(entry)
                continue
            self._close_file()
            self._add(entry)
        self._close_file()
        self.chunks.settle_zeros()
        self._resolve_links()
        for parent, name, node in self._whiteouts:
            self.children[parent].setdefault(name, node)

    def is_directory(self, node: int) -> bool:
        """Whether `node` is a directory."""
        return node in self.children

    # --- entries

    def _add(self, entry: Entry) -> None:
        path = encode(entry.name, "name")
        parent, base = self._locate(path, entry.type)
        if not base:
            if entry.type != "dir":
                raise FormatError(f"the layer's root is a {entry.type[:20]!r} in the TOC; it must be a directory")
            return
        if parent == 0 and base in _LANDMARKS and entry.type == "reg":
            self._landmark(base, entry)
        elif base == OPAQUE:
            self.opaque.add(parent)
            self._content_without_node(entry, path)
        elif base.startswith(WHITEOUT) and not base.startswith(_AUFS):
            self._whiteout(parent, base.removeprefix(WHITEOUT), entry, path)
        elif entry.type == "hardlink":
            self._link(parent, base, entry)
        elif entry.type == "dir":
            self._enter_directory(parent, base, entry)
        else:
            self._drop(parent, base)
            self.children[parent][base] = self._node(entry, path)

    def _locate(self, path: bytes, kind: str) -> tuple[int, bytes]:
        """Return the directory that holds `path`, made if it is missing, and the last component; b"" for the root."""
        head, _, base = (path[:-1] if kind == "dir" and path[-1:] == b"/" else path).rpartition(b"/")
        parent = self._paths.get(head)
        if parent is not None and base not in (b"", b".", b"..") and len(base) <= 255 and len(path) <= 4095 and head:
            return parent, base
        parts = split_path(path)
        if not parts:
            return 0, b""
        node = 0
        for part in parts[:-1]:
            node = self._step(node, part, path)
        if head:
            self._paths[head] = node
        return node, parts[-1]

    def _step(self, node: int, part: bytes, path: bytes) -> int:
        child = self.children[node].get(part)
        if child is None:
            if part.startswith(WHITEOUT) and not part.startswith(_AUFS):
                raise FormatError(f"the TOC has {show(path)} below a whiteout")
            child = self._directory(0o755)
            self.children[node][part] = child
        elif child not in self.children:
            raise FormatError(f"the TOC has {show(path)}, but {show(part)} in it is no directory")
        return child

    def _forget_paths(self) -> None:
        """Drop the memory of paths: one of them may have ceased to be a directory."""
        self._paths = {}

    def _drop(self, parent: int, base: bytes) -> None:
        """Remove what an entry is about to replace."""
        old = self.children[parent].pop(base, None)
        if old in self.children:
            self._forget_paths()

    def _append(self, record: bytes) -> int:
        node = self._count
        if node >= TOC_ENTRIES:
            raise FormatError(f"the TOC makes more than {TOC_ENTRIES} files and directories")
        self._count += 1
        self.records += record
        return node

    def _directory(self, permissions: int) -> int:
        mode = stat.S_IFDIR | permissions
        node = self._append(RECORD.pack(Kind.DIR, 0, mode, 0, 0, 0, 0, 0, 0, 0, NONE, NO_DIGEST))
        self.children[node] = {}
        return node

    def _enter_directory(self, parent: int, base: bytes, entry: Entry) -> None:
        siblings = self.children[parent]
        node = siblings.get(base)
        if node is None or node not in self.children:
            node = self._directory(0)
            siblings[base] = node
        self._set_attributes(node, entry)

    def _node(self, entry: Entry, path: bytes) -> int:
        """Append a node that is not a directory."""
        kind, file_type = _TYPES.get(entry.type, (None, 0))
        if kind is None:
            raise FormatError(f"the TOC has {show(path)} of the unknown type {entry.type[:20]!r}")
        permissions, uid, gid = check_owner(entry)
        size = rdev = first = count = 0
        if kind is Kind.REG:
            first = self.chunks.begin(entry)
            size = entry.size
            self._open = (self._count, path)
        elif kind is Kind.SYMLINK:
            target = check_target(entry)
            permissions = 0o777  # Linux has no other; unpacking changes no link's mode
            first, count = len(self.text), len(target)
            size = count
            self.text += target
        elif kind is not Kind.FIFO:
            rdev = check_device(entry)
        xattrs = self._xattr_set(check_xattrs(entry)) if entry.xattrs else NONE
        mtime_ns = self._clock.mtime_ns(entry.modtime)
        return self._append(
            RECORD.pack(
                kind, 0, file_type | permissions, uid, gid, size, mtime_ns, rdev, first, count, xattrs, NO_DIGEST
            )
        )

    def _close_file(self) -> None:
        if self._open is None:
            return
        node, path = self._open
        self._open = None
        count, digest, derived = self.chunks.finish(path)
        if node == _NO_NODE or not count:
            return
        at = node * RECORD.size
        if derived:
            self.records[at + 1] |= FLAG_DERIVED
        WORD.pack_into(self.records, at + _COUNT_AT, count)
        self.records[at + _DIGEST_AT : at + RECORD.size] = digest

    def _content_without_node(self, entry: Entry, path: bytes) -> None:
        """Check the chunks of a file that nobody will see."""
        if entry.type == "reg":
            self.chunks.begin(entry)
            self._open = (_NO_NODE, path)

    def _landmark(self, base: bytes, entry: Entry) -> None:
        self._content_without_node(entry, base)
        if base == NO_PREFETCH_LANDMARK.encode():
            self.prefetch_end = 0
        elif base == PREFETCH_LANDMARK.encode() and self.prefetch_end != 0:
            self.prefetch_end = entry.offset if entry.size else None

    def _whiteout(self, parent: int, name: bytes, entry: Entry, path: bytes) -> None:
        if name in (b"", b".", b".."):
            raise FormatError(f"the TOC has the whiteout {show(path)}, which names nothing")
        _, uid, gid = check_owner(entry)
        mtime_ns = self._clock.mtime_ns(entry.modtime)
        record = RECORD.pack(Kind.CHAR, 0, stat.S_IFCHR, uid, gid, 0, mtime_ns, 0, 0, 0, NONE, NO_DIGEST)
        self._whiteouts.append((parent, name, self._append(record)))
        self._content_without_node(entry, path)

    # --- attributes

    def _set_attributes(self, node: int, entry: Entry) -> None:
        """Do what chown, setxattr, chmod and utimes do when unpacking meets a file that is already there."""
        at = node * RECORD.size
        fields = list(RECORD.unpack_from(self.records, at))
        permissions, fields[3], fields[4] = check_owner(entry)
        if fields[0] != Kind.SYMLINK:
            fields[2] = stat.S_IFMT(fields[2]) | permissions
        fields[6] = self._clock.mtime_ns(entry.modtime)
        if entry.xattrs or fields[10] != NONE:
            kept = dict(self.xattr_sets[fields[10]]) if fields[10] != NONE else {}
            if fields[0] == Kind.REG:
                kept.pop(_CAPABILITY, None)  # chown(2) takes capabilities from a file
            fields[10] = self._xattr_set(kept | check_xattrs(entry))
        RECORD.pack_into(self.records, at, *fields)

    def _xattr_set(self, xattrs: dict[bytes, bytes]) -> int:
        """Return the number of a set of attributes; equal sets are stored once."""
        if not xattrs:
            return NONE
        key = tuple(sorted(xattrs.items()))
        number = self._xattr_numbers.setdefault(key, len(self.xattr_sets))
        if number == len(self.xattr_sets):
            self.xattr_sets.append(key)
        return number

    # --- hard links

    def _link(self, parent: int, base: bytes, entry: Entry) -> None:
        self._drop(parent, base)
        target = encode(entry.link_name, "link target")
        node = self._find(split_path(target.lstrip(b"/")))
        if node is None or node < 0:
            self._links.append((parent, base, target))
            node = -1 - len(self._links)
        elif node in self.children:
            raise FormatError(f"the hard link {show(base)} points to the directory {show(target)}")
        else:
            self._set_attributes(node, entry)
        self.children[parent][base] = node

    def _find(self, parts: list[bytes]) -> int | None:
        node: int | None = 0
        for part in parts:
            if node is None or node not in self.children:
                return None
            node = self.children[node].get(part)
        return node

    def _resolve_links(self) -> None:
        """Point every link whose target came later, or was one itself, to the node at the end of its chain."""
        for number, (parent, base, _) in enumerate(self._links):
            if self.children[parent].get(base) == -2 - number:
                self._resolve(-2 - number)

    def _resolve(self, link: int) -> None:
        chain: list[int] = []
        seen: set[int] = set()
        node: int | None = link
        while node is not None and node < 0:
            if node in seen:
                raise FormatError(f"the hard link {show(self._links[-2 - node][1])} leads to itself in a circle")
            seen.add(node)
            chain.append(node)
            node = self._find(split_path(self._links[-2 - node][2].lstrip(b"/")))
        _, base, target = self._links[-2 - link]
        if node is None:
            raise FormatError(f"the hard link {show(base)} points to {show(target)}, which is not in the layer")
        if node in self.children:
            raise FormatError(f"the hard link {show(base)} points to the directory {show(target)}")
        for passed in chain:
            parent, name, _ = self._links[-2 - passed]
            if self.children[parent].get(name) == passed:
                self.children[parent][name] = node
