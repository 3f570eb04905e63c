"""The order of a layer's entries: what a starting container reads first, then a landmark, then the rest."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, takewhile

from snapshotter.format.tar_entries import (
    NO_PREFETCH_LANDMARK,
    PREFETCH_LANDMARK,
    WHITEOUT,
    EntryType,
    TarEntry,
    ancestors,
    clean_name,
    inode_attributes,
)

# Readers take a landmark's place, never its content; this byte is what other writers put there.
_LANDMARK_CONTENT = b"\x0f"

_Places = Mapping[str, tuple[int, TarEntry]]


def arrange(entries: Sequence[TarEntry], prioritised: Sequence[str]) -> list[TarEntry]:
    """Return all entries, those named by `prioritised` first and in that order, with the landmark.

    Each is preceded by its directories and, if it is a hard link, by what it points to; names that the layer does not
    have are passed over. The rest keeps its order. Of hard links with different attributes the last one's count: they stay
    where they are, and only their file is moved.

    Source: estargz.md of the eStargz specification, "Prioritized Files and Landmark Files".
    """
    if not prioritised:
        return [_landmark(NO_PREFETCH_LANDMARK), *entries]
    by_name = {entry.name: (place, entry) for place, entry in enumerate(entries)}
    files = _files(entries)
    at_odds = _at_odds(files, by_name)
    first: dict[str, TarEntry] = {}
    seen: set[str] = set()
    for path in prioritised:
        name = clean_name(path)
        if files.get(name) in at_odds:
            name = files[name]
        for one in _with_targets(name, by_name, first):
            for needed in _with_directories(one, by_name, seen):
                first.setdefault(needed, by_name[needed][1])
    rest = [entry for entry in entries if entry.name not in first]
    if not first:
        return [_landmark(NO_PREFETCH_LANDMARK), *rest]
    return [*first.values(), _landmark(PREFETCH_LANDMARK), *rest]


def _files(entries: Sequence[TarEntry]) -> dict[str, str]:
    """For each hard link the file that it is a name of, at the end of its chain."""
    files: dict[str, str] = {}
    for entry in entries:
        if entry.type is EntryType.HARDLINK:
            files[entry.name] = files.get(entry.link_name, entry.link_name)
    return files


def _at_odds(files: Mapping[str, str], by_name: _Places) -> set[str]:
    """The files of which some hard link has other attributes."""
    return {
        file
        for link, file in files.items()
        if file in by_name and inode_attributes(by_name[link][1]) != inode_attributes(by_name[file][1])
    }


def _with_targets(name: str, by_name: _Places, first: Mapping[str, TarEntry]) -> list[str]:
    """`name` after the chain of hard links it stands on, as far as that is not in front yet; empty if the layer does not have it."""
    chain: list[str] = []
    while name in by_name and name not in first:
        chain.append(name)
        entry = by_name[name][1]
        if entry.type is not EntryType.HARDLINK:
            break
        name = entry.link_name
    return chain[::-1]


def _with_directories(name: str, by_name: _Places, seen: set[str]) -> Iterator[str]:
    """What must be unpacked before `name`, outermost first, and itself; without what lies above a directory in `seen`."""
    if "" in by_name:
        yield ""
    new = list(takewhile(lambda path: path not in seen, chain((name,), ancestors(name))))
    seen.update(new)
    for needed in reversed(new):
        # A whiteout of the same name, which always comes before it, would hide it if it came after it.
        parent, _, last = needed.rpartition("/")
        whiteout = f"{parent}/{WHITEOUT}{last}" if parent else WHITEOUT + last
        if whiteout in by_name:
            yield whiteout
        if needed in by_name:
            yield needed


def _landmark(name: str) -> TarEntry:
    return TarEntry(name, EntryType.REG, 0o444, size=len(_LANDMARK_CONTENT), content=_LANDMARK_CONTENT)
