"""The pyfuse3 handlers: the only place where kernel requests meet layers.

    /                      ROOT
    /<session>/            SESSION
    /<session>/ready       READY, an empty file (session.py says what for)
    /<session>/layers/<n>  LAYERS, then the whole tree of layer n
    /<session>/gate        GATE, /<session>/fail FAIL: where overlays of the erofs plane ask for contents (gate_tree.py)

Layers never change, so what is inside one is answered with infinite timeouts, absent names included, and the kernel
asks once. A name in `layers` that is not there yet is answered by ENOENT, which the kernel does not remember. Handles
are inode numbers and nothing is counted, so that a later process can serve what this one opened.

Whatever happens in a handler, what leaves it is a reply or a FUSEError: any other exception would end `pyfuse3.main`,
and with it every mount of the node.
"""

# ruff: noqa: ARG002 - pyfuse3 prescribes what a handler is given

import errno
import functools
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData, readdir_reply

from snapshotter.errors import SnapshotterError, WaiterKilled
from snapshotter.plane.fuse.complaints import Complaints
from snapshotter.plane.fuse.gate_tree import BLOCK_SIZE, INFINITE_S, GateTree
from snapshotter.plane.fuse.in_hand import InHand
from snapshotter.plane.fuse.inodes import Fixed, Inode, Numbers
from snapshotter.plane.fuse.openers import Openers
from snapshotter.plane.fuse.served import ServedGate, ServedLayer, ServedShelf

OVERLAY_QUESTIONS: Final = frozenset({b"trusted.overlay.metacopy", b"trusted.overlay.origin"})
"""overlayfs asks these of every file and directory that it meets. No layer has them: an index drops `trusted.*`."""

LAYERS_NAME: Final = b"layers"
READY_NAME: Final = b"ready"
GATE_NAME: Final = b"gate"
FAIL_NAME: Final = b"fail"


P = ParamSpec("P")
R = TypeVar("R")


def _no_note(*_: object) -> int:
    return 0


def _no_wipe(_: int) -> None:
    pass


def translated(
    handler: Callable[Concatenate["LayerOperations", P], Awaitable[R]],
) -> Callable[Concatenate["LayerOperations", P], Coroutine[Any, Any, R]]:
    """Wrap a handler: FUSEError passes, our errors become their errno, any other Exception EIO."""
    name = handler.__name__

    async def guarded(self: "LayerOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests[name] += 1
        note = self._note(name, *args)
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except WaiterKilled as error:
            raise FUSEError(error.errno) from None
        except SnapshotterError as error:
            self.failures[name] += 1
            self.complaints.about(name, error)
            raise FUSEError(error.errno) from None
        except Exception as error:  # noqa: BLE001 - the door
            self.failures[name] += 1
            self.complaints.about(name, error)
            raise FUSEError(errno.EIO) from None
        finally:
            self._wipe(note)

    functools.update_wrapper(guarded, handler)
    return guarded


class LayerOperations(pyfuse3.Operations):
    """Serves the layers of a shelf below `/<session>/layers/` and, where there is one, a gate.

    `state_dir` is the directory whose file system statfs speaks of. `requests` counts what the kernel has asked,
    `failures` what of it was answered with an error that says that something is wrong.
    """

    # Negotiated in INIT: these three must stay the same in every version, or no later process can take over.
    supports_dot_lookup = False
    """With it overlayfs finds by a file handle what it once copied up, for the sake of st_ino; but the kernel holds what was
    found so by a name that no lookup has given, and at the next use takes it for stale: once caches were dropped every file
    that a container had changed failed with ESTALE [M, Linux 6.18]."""
    enable_writeback_cache = False
    enable_acl = True
    """Without it the kernel shows POSIX ACLs of a layer but does not act on them."""

    def __init__(
        self,
        shelf: ServedShelf,
        session: int,
        state_dir: Path,
        complaints: Complaints | None = None,
        gate: ServedGate | None = None,
        in_hand: InHand | None = None,
    ) -> None:
        """`in_hand` is told of each request before it is handled, and after."""
        super().__init__()
        self._note: Callable[..., int] = _no_note if in_hand is None else in_hand.begin
        self._wipe: Callable[[int], None] = _no_wipe if in_hand is None else in_hand.end
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.complaints = complaints or Complaints()
        self.openers = Openers()
        self._shelf = shelf
        self._state_dir = state_dir
        self._session_name = b"%d" % session
        self._numbers = Numbers(session)
        self._place = b"" if gate is None else gate.place
        self._gate = None if gate is None else GateTree(gate, self._numbers)
        self._absent = EntryAttributes()
        self._absent.st_ino = Inode(0)
        self._absent.entry_timeout = self._absent.attr_timeout = INFINITE_S
        self._fixed = {fixed: self._fixed_attributes(fixed) for fixed in Fixed}

    # Names

    @translated
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name. Inside a layer the answer holds for ever, absence too."""
        layer, node = self._find(parent_inode)
        if layer is None:
            return await self._lookup_above(node, name, ctx)
        index = layer.index
        if name == b".":
            return self._attributes(layer, node)
        if name == b"..":
            return self._fixed[Fixed.LAYERS] if node == 0 else self._attributes(layer, index.parent(node))
        child = index.lookup(node, name)
        return self._absent if child is None else self._attributes(layer, child)

    @translated
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """The target, as the TOC has it."""
        layer, node = self._find(inode)
        if layer is None:
            raise FUSEError(errno.EINVAL)
        return layer.index.readlink(node)

    @translated
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """The handle is the inode number."""
        return inode

    @translated
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List from position `start_id`: 0 is ".", 1 "..", then the entries in the order of the index."""
        layer, node = self._find(fh)
        if layer is None:
            self._list_above(node, start_id, token)
            return
        index = layer.index
        if start_id == 0 and not readdir_reply(token, b".", self._attributes(layer, node), 1):
            return
        if start_id <= 1:
            above = self._fixed[Fixed.LAYERS] if node == 0 else self._attributes(layer, index.parent(node))
            if not readdir_reply(token, b"..", above, 2):
                return
        for position, name, child in index.entries(node, max(start_id - 2, 0)):
            if not readdir_reply(token, name, self._attributes(layer, child), position + 2):
                return

    @translated
    async def releasedir(self, fh: int) -> None:
        """Nothing was opened."""

    # Attributes

    @translated
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """What stat shows."""
        layer, node = self._find(inode)
        return self._above(node) if layer is None else self._attributes(layer, node)

    @translated
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """One attribute, or ENODATA."""
        if name in OVERLAY_QUESTIONS:
            raise FUSEError(errno.ENODATA)
        layer, node = self._find(inode)
        value = None if layer is None else layer.index.xattrs(node).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @translated
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """The names of all attributes."""
        layer, node = self._find(inode)
        return () if layer is None else tuple(layer.index.xattrs(node))

    @translated
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """True: the kernel itself checks permissions (`default_permissions`)."""
        return True

    @translated
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The file system of the state directory: what the node can still take, for df and the kubelet."""
        real, answer = os.statvfs(self._state_dir), StatvfsData()
        answer.f_bsize, answer.f_frsize, answer.f_namemax = real.f_bsize, real.f_frsize, 255
        answer.f_blocks, answer.f_bfree, answer.f_bavail = real.f_blocks, real.f_bfree, real.f_bavail
        answer.f_files, answer.f_ffree, answer.f_favail = real.f_files, real.f_ffree, real.f_favail
        return answer

    # Contents

    @translated
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """The handle is the inode number; cached pages stay, since contents never change."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FUSEError(errno.EROFS)
        self.openers.opened(inode, ctx.pid)
        return FileInfo(fh=inode, keep_cache=True)

    @translated
    async def read(  # type: ignore[override]  # pyfuse3 takes any contiguous buffer
        self, fh: int, off: int, size: int
    ) -> bytes | bytearray:
        """`size` bytes of a file from `off`, fewer only at its end."""
        layer, node = self._find(fh)
        if layer is None:
            return b"" if self._gate is None or node in self._fixed else await self._gate.read(node, off, size)
        # bytes, never a view of a file mapping: a page fault inside the reply's writev makes the reader see EIO.
        return await layer.read(node, off, size)

    @translated
    async def flush(self, fh: int) -> None:
        """ENOSYS: from then on the kernel sends no FLUSH, whose waiters cannot be killed (each close and exit)."""
        raise FUSEError(errno.ENOSYS)

    @translated
    async def release(self, fh: int) -> None:
        """Nothing was opened; only who did is forgotten."""
        self.openers.released(fh)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is counted: the numbers mean the same in every process."""

    # Inside

    def _find(self, inode: int) -> tuple[ServedLayer | None, int]:
        """The layer and node of an inode, or None and the `Fixed` one; ESTALE if this session does not have it."""
        place = self._numbers.place(inode)
        if place is None:
            raise FUSEError(errno.ESTALE)
        number, node = place
        if number == 0:
            if node not in self._fixed and (self._gate is None or not self._gate.owns(node)):
                raise FUSEError(errno.ESTALE)
            return None, node
        layer = self._shelf.get(number)
        if layer is None:
            raise FUSEError(errno.ESTALE)
        return layer, node

    def _attributes(self, layer: ServedLayer, node: int) -> EntryAttributes:
        real, entry = layer.index.attributes(node), EntryAttributes()
        mode, mtime_ns = real.mode, real.mtime_ns
        entry.st_ino = self._numbers.layer_base(layer.number) | node
        entry.st_mode = mode
        entry.st_nlink = real.nlink
        entry.st_uid = real.uid
        entry.st_gid = real.gid
        entry.st_size = size = real.size
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = mtime_ns
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            entry.st_blocks = (size + 511) // 512
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry.st_rdev = real.rdev
        entry.st_blksize = BLOCK_SIZE
        entry.entry_timeout = entry.attr_timeout = INFINITE_S
        return entry

    def _fixed_attributes(self, fixed: Fixed) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = self._numbers.of_fixed(fixed)
        entry.st_mode = stat.S_IFREG | 0o444 if fixed is Fixed.READY else stat.S_IFDIR | 0o755
        entry.st_nlink = 1 if fixed is Fixed.READY else 2
        entry.st_blksize = BLOCK_SIZE
        entry.entry_timeout = entry.attr_timeout = INFINITE_S
        return entry

    def _above(self, node: int) -> EntryAttributes:
        """What stat shows of something above the layers."""
        return self._fixed[Fixed(node)] if self._gate is None or node in self._fixed else self._gate.attributes(node)

    def _children(self, node: int) -> tuple[tuple[bytes, Fixed], ...]:
        """The names of a directory above the layers.

        Layers are reached by number and not listed, so that no walk of the node's file systems wanders into images;
        nor are the gate's directories.
        """
        if node == Fixed.ROOT:
            return ((self._session_name, Fixed.SESSION),)
        if node == Fixed.SESSION:
            here = (LAYERS_NAME, Fixed.LAYERS), (READY_NAME, Fixed.READY)
            return here if self._gate is None else (*here, (GATE_NAME, Fixed.GATE), (FAIL_NAME, Fixed.FAIL))
        return ()

    def _parent(self, node: int) -> Fixed:
        """The directory above a fixed one."""
        if node == Fixed.PLACE:
            return Fixed.GATE
        return Fixed.ROOT if node in (Fixed.ROOT, Fixed.SESSION) else Fixed.SESSION

    async def _lookup_above(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name == b".":
            return self._above(parent)
        if self._gate is not None and self._gate.owns(parent):
            if name == b"..":
                return self._above_by_inode(self._gate.parent(parent))
            return await self._gate.lookup(parent, name, ctx.pid)
        if name == b"..":
            return self._fixed[self._parent(parent)]
        if parent == Fixed.FAIL:
            raise FUSEError(errno.EIO)
        if parent == Fixed.GATE and name == self._place:
            return self._fixed[Fixed.PLACE]
        if parent == Fixed.PLACE and self._gate is not None:
            return await self._gate.lookup_domain(name)
        if parent == Fixed.LAYERS and name.isdigit() and not name.startswith(b"0") and len(name) < 10:
            layer = self._shelf.get(int(name))
            if layer is not None:
                return self._attributes(layer, 0)
        for child, fixed in self._children(parent):
            if child == name:
                return self._fixed[fixed]
        raise FUSEError(errno.ENOENT)

    def _above_by_inode(self, inode: Inode) -> EntryAttributes:
        return self._above(self._find(inode)[1])

    def _list_above(self, node: int, start: int, token: ReaddirToken) -> None:
        if self._gate is not None and self._gate.owns(node):
            above = self._above_by_inode(self._gate.parent(node))
        else:
            above = self._fixed[self._parent(node)]
        children = ((name, self._fixed[fixed]) for name, fixed in self._children(node))
        listing: Iterable[tuple[bytes, EntryAttributes]] = ((b".", self._above(node)), (b"..", above), *children)
        for position, (name, attributes) in enumerate(listing, 1):
            if position > start and not readdir_reply(token, name, attributes, position):
                return
