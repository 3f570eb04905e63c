"""The order of a layer's entries: what a starting container reads first, then a landmark, then the rest."""

from collections.abc import Iterator, Mapping, Sequence

from snapshotter.format.tar_entries import (
    NO_PREFETCH_LANDMARK,
    PREFETCH_LANDMARK,
    WHITEOUT,
    EntryType,
    TarEntry,
    ancestors,
    clean_name,
)

# Readers take a landmark's place, never its content; this byte is what other writers put there.
_LANDMARK_CONTENT = b"\x0f"

_Places = Mapping[str, tuple[int, TarEntry]]


def arrange(entries: Sequence[TarEntry], prioritised: Sequence[str]) -> list[TarEntry]:
    """Return all entries, those named by `prioritised` first and in that order, with the landmark.

    Each is preceded by its directories and, if it is a hard link, by what it points to; names that the layer does not
    have are passed over. The rest keeps its order.

    Source: estargz.md of the eStargz specification, "Prioritized Files and Landmark Files".
    """
    if not prioritised:
        return [_landmark(NO_PREFETCH_LANDMARK), *entries]
    by_name = {entry.name: (place, entry) for place, entry in enumerate(entries)}
    first: dict[str, TarEntry] = {}
    for path in prioritised:
        for name in _with_targets(clean_name(path), by_name):
            for needed in _with_directories(name, by_name):
                first.setdefault(needed, by_name[needed][1])
    rest = [entry for entry in entries if entry.name not in first]
    if not first:
        return [_landmark(NO_PREFETCH_LANDMARK), *rest]
    return [*first.values(), _landmark(PREFETCH_LANDMARK), *rest]


def _with_targets(name: str, by_name: _Places) -> list[str]:
    """`name` after the chain of hard links it stands on; empty if the layer does not have it."""
    chain: list[str] = []
    while name in by_name:
        chain.append(name)
        entry = by_name[name][1]
        if entry.type is not EntryType.HARDLINK:
            break
        name = entry.link_name
    return chain[::-1]


def _with_directories(name: str, by_name: _Places) -> Iterator[str]:
    """What must be unpacked before `name`, outermost first, and itself."""
    for directory in ("", *list(ancestors(name))[::-1]):
        if directory in by_name and directory != name:
            yield directory
    # A whiteout of the same name that came before it would, coming after it, hide it.
    parent, _, last = name.rpartition("/")
    whiteout = f"{parent}/{WHITEOUT}{last}" if parent else WHITEOUT + last
    if whiteout in by_name and by_name[whiteout][0] < by_name[name][0]:
        yield whiteout
    yield name


def _landmark(name: str) -> TarEntry:
    return TarEntry(name, EntryType.REG, 0o444, size=len(_LANDMARK_CONTENT), content=_LANDMARK_CONTENT)
