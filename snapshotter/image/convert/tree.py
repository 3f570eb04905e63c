"""An image's layers as the one tree that a container sees: which layer a path comes from, without unpacking.

Source: OCI Image Specification 1.1, layer.md, "Whiteouts".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from snapshotter.errors import NotLazy, Reason
from snapshotter.format.tar_entries import OPAQUE, WHITEOUT, EntryType, TarEntry, ancestors, clean_name

# As many as the kernel follows in one path (MAXSYMLINKS).
_LINKS_MAX = 40


class ImageTree:
    """The layers of one image, lowest first, each as its entries by name."""

    def __init__(self) -> None:
        self._layers: list[Mapping[str, TarEntry] | None] = []

    def add(self, entries: Sequence[TarEntry] | None) -> list[TarEntry]:
        """Add the next layer and return its entries, completed; None: what is in it cannot be known.

        A layer may hold a file without the directories above it. Unpacked, they are those of the layers below; alone,
        as a lazy layer is mounted, they would be 0755 and root's, and an overlay would show those instead of /tmp's
        1777. So what is found below is added.

        Raises:
            NotLazy: a directory left out is a link below, or below is a layer that cannot be known.
        """
        if entries is None:
            self._layers.append(None)
            return []
        names = {entry.name for entry in entries}
        seen: set[str] = set()
        complete: dict[str, TarEntry] = {}
        try:
            for entry in entries:
                above = list(takewhile(lambda name: name not in seen, ancestors(entry.name)))
                seen.update(above)
                for directory in reversed(above):
                    if directory not in names and (found := self._directory(directory)) is not None:
                        complete[directory] = found
                complete[entry.name] = entry
        except NotLazy:
            self._layers.append(None)
            raise
        self._layers.append(complete)
        return list(complete.values())

    def find(self, name: str) -> tuple[int, TarEntry] | None:
        """Return the layer (counted from the lowest, 0) that shows `name` to a container, and its entry there.

        Links are not followed. Layers that cannot be known are taken for empty.
        """
        for number in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[number]
            if layer is None:
                continue
            if name in layer:
                return number, layer[name]
            if _hides(layer, name):
                return None
        return None

    def names(self) -> Iterator[str]:
        """The names of everything that a container sees but directories, in no particular order."""
        seen = {name for layer in self._layers if layer for name in layer}
        for name in seen:
            found = self.find(name)
            hides = name.rpartition("/")[2].startswith(WHITEOUT)
            if found is not None and found[1].type is not EntryType.DIR and not hides:
                yield name

    def follow(self, name: str) -> tuple[list[tuple[int, str]], bool]:
        """Return every link and at last the entry that opening `name` passes, and whether it ended at an entry."""
        passed: list[tuple[int, str]] = []
        rest = clean_name(name).split("/")
        at = ""
        while rest:
            part = rest.pop(0)
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            at = f"{at}/{part}" if at else part
            found = self.find(at)
            if found is None:
                if not rest:
                    return passed, False
                continue  # a directory that no layer has an entry for
            number, entry = found
            if entry.type is EntryType.SYMLINK:
                passed.append((number, at))
                if len(passed) > _LINKS_MAX:
                    return passed, False
                at = "" if entry.link_name.startswith("/") else entry.parent
                rest = [part for part in entry.link_name.split("/") if part not in ("", ".")] + rest
            elif not rest:
                passed.append((number, at))
        return passed, bool(passed)

    def _directory(self, name: str) -> TarEntry | None:
        """The directory `name` as the layers so far have it, made ready to be written again; None if nobody has it.

        As containerd looks for it: also below a directory that hides what lower layers have in it.
        """
        for layer in reversed(self._layers):
            if layer is None:
                raise NotLazy(
                    Reason.TOC_INVALID,
                    f"it leaves out its directory {name!r}, and a layer below it that may have it stays as it is",
                )
            if (entry := layer.get(name)) is not None:
                break
            if _hides(layer, name, opaque=False):
                return None
        else:
            return None
        if entry.type is not EntryType.DIR:
            raise NotLazy(Reason.TOC_INVALID, f"it has files below {name!r}, which is a {entry.type} in a lower layer")
        return replace(entry, header_offset=0, header_size=0)


def _hides(layer: Mapping[str, TarEntry], name: str, *, opaque: bool = True) -> bool:
    """Whether `layer`, which has no entry `name`, keeps that of lower layers from being seen; `opaque`: also by an opaque directory."""
    path = name
    while path:
        parent, _, last = path.rpartition("/")
        below = f"{parent}/" if parent else ""
        if below + WHITEOUT + last in layer or (opaque and below + OPAQUE in layer):
            return True
        if parent in layer and layer[parent].type is not EntryType.DIR:
            return True
        path = parent
    return False
