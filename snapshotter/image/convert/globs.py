"""Patterns for paths of an image, as shells know them.

`*` stands for any characters of a name, `?` for one, `[a-z]` for one of these, `[!a-z]` or `[^a-z]` for one that is none of these; none of
them for a slash. `**` as a whole name stands for any number of directories, none included, and at the end for whatever is below. A
name that begins with a dot is no exception. `[*]` is the character itself; a bracket that is never closed is one.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from snapshotter.format.tar_entries import clean_name

_MAGIC = re.compile(r"[*?[]")
_ANY_DEPTH = "**"


def is_glob(text: str) -> bool:
    """Whether there is a character that stands for others."""
    return _MAGIC.search(text) is not None


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern: below `directory`, a path as it stands, each of `parts` stands for a name, None for any number of them."""

    directory: str
    parts: tuple[re.Pattern[str] | None, ...]

    def matches(self, name: str) -> bool:
        """Whether a clean name matches. What this takes grows with both lengths, never with their power."""
        top = f"{self.directory}/" if self.directory else ""
        if not name.startswith(top):
            return False
        used = self._reachable([0])  # how many of the parts the names so far may have taken
        for part in name[len(top) :].split("/"):
            after = []
            for number in used:
                pattern = self.parts[number] if number < len(self.parts) else _NOTHING
                if pattern is None:
                    after.append(number)
                elif pattern.match(part):
                    after.append(number + 1)
            used = self._reachable(after)
        return len(self.parts) in used

    def _reachable(self, numbers: Iterable[int]) -> set[int]:
        """`numbers`, and those beyond parts that stand for no name at all."""
        found = set()
        for first in numbers:
            number = first
            found.add(number)
            while number < len(self.parts) and self.parts[number] is None:
                number += 1
                found.add(number)
        return found


_NOTHING = re.compile(r"(?!)")


def parse_glob(text: str) -> Glob:
    """The pattern that `text` is; anything is one."""
    names = clean_name(text).split("/")
    plain = next((number for number, name in enumerate(names) if is_glob(name)), len(names))
    # Of several `**` in a row one says it all.
    rest = [
        name
        for number, name in enumerate(names)
        if number >= plain and names[number - 1 : number + 1] != [_ANY_DEPTH] * 2
    ]
    if rest and rest[-1] == _ANY_DEPTH:
        rest.append("*")
    return Glob("/".join(names[:plain]), tuple(map(_compiled, rest)))


def _compiled(name: str) -> re.Pattern[str] | None:
    if name == _ANY_DEPTH:
        return None
    return re.compile(fnmatch.translate(name.replace("[^", "[!")))
