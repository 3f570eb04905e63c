"""The gate as a tree of the FUSE mount: what overlays of the erofs plane look into for content that is not on the node.

    /<session>/gate/<place>/<domain>/<ab>/<name>   files; a small one, of one chunk, is named by its digest alone
    /<session>/fail/…                              where every name is an I/O error

Directories are answered for ever. A file is either not there, which the kernel does not remember, or an inode that stays
the same as long as the mount lives: an overlay that has found it asks for it by name again, and must be given it.
"""

import errno
import os
import stat
from typing import Final

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError

from snapshotter.plane.fuse.inodes import (
    GATE_DIRECTORY,
    GATE_FILE,
    SHARDS,
    Fixed,
    GateDirectory,
    Inode,
    Numbers,
    gate_directory,
    gate_directory_node,
    gate_file_node,
)
from snapshotter.plane.fuse.served import ServedFile, ServedGate

INFINITE_S: Final = 1e9
"""Timeout of what never changes: 30 years."""
BLOCK_SIZE: Final = 4096
"""st_blksize. cp and cat read 128 KiB and more whatever it says; stdio allocates and reads that much for each file, so
a larger value makes programs that open many small files slower. It is also what an unpacked layer shows."""
SHARD_DIGITS: Final = 2


class GateTree:
    """Answers for the nodes of the gate."""

    def __init__(self, gate: ServedGate, numbers: Numbers) -> None:
        self._gate = gate
        self._numbers = numbers

    @staticmethod
    def owns(node: int) -> bool:
        """Whether a node above the layers is one of the gate's, but for the fixed ones."""
        return node >= GATE_DIRECTORY

    def inode(self, node: int) -> Inode:
        """The inode number of a node."""
        return self._numbers.of_gate(node)

    def attributes(self, node: int) -> EntryAttributes:
        """What stat shows. ESTALE for a file that this session does not know."""
        if not node & GATE_FILE:
            return self._entry(node, stat.S_IFDIR | 0o700, 0)
        file = self._gate.file(node & ~GATE_FILE)
        if file is None:
            raise FUSEError(errno.ESTALE)
        return self._file(file)

    async def lookup_domain(self, name: bytes) -> EntryAttributes:
        """A name in the place: a sharing domain."""
        number = await self._gate.domain_number(os.fsdecode(name))
        if number is None:
            raise FUSEError(errno.ENOENT)
        return self.attributes(gate_directory_node(GateDirectory(number, SHARDS)))

    async def lookup(self, node: int, name: bytes, pid: int) -> EntryAttributes:
        """A name in one of the gate's own directories; process `pid` waits for it."""
        if node & GATE_FILE:
            raise FUSEError(errno.ENOTDIR)
        directory = gate_directory(node)
        if directory.shard == SHARDS:
            try:
                shard = int(name, 16)
            except ValueError:
                shard = SHARDS
            if len(name) != SHARD_DIGITS or b"%02x" % shard != name:
                raise FUSEError(errno.ENOENT)
            return self.attributes(gate_directory_node(directory._replace(shard=shard)))
        domain = self._gate.domain_name(directory.domain)
        if domain is None:
            raise FUSEError(errno.ESTALE)
        file = await self._gate.lookup(domain, os.fsdecode(name), pid)
        if file is None:
            raise FUSEError(errno.ENOENT)
        return self._file(file)

    def parent(self, node: int) -> Inode:
        """The directory above one of the gate's own directories."""
        directory = gate_directory(node)
        if directory.shard == SHARDS:
            return self._numbers.of_fixed(Fixed.PLACE)
        return self.inode(gate_directory_node(directory._replace(shard=SHARDS)))

    async def read(self, node: int, offset: int, size: int) -> bytes | bytearray:
        """At most `size` bytes of a file."""
        return await self._gate.read(node & ~GATE_FILE, offset, size)

    def _file(self, file: ServedFile) -> EntryAttributes:
        return self._entry(gate_file_node(file.number), stat.S_IFREG | 0o400, file.size)

    def _entry(self, node: int, mode: int, size: int) -> EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self.inode(node)
        entry.st_mode = mode
        entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        entry.st_size = size
        entry.st_blocks = (size + 511) // 512
        entry.st_blksize = BLOCK_SIZE
        entry.entry_timeout = entry.attr_timeout = INFINITE_S
        return entry
