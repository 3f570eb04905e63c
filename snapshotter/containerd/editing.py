"""Changes to a TOML file that an admin wrote, and their way back. Nothing else in the file changes, not a blank.

A table that the file does not have is appended as text, `imports` is inserted as a line: both are taken out again by cutting
the very text. Keys of a table that is there already go through tomlkit. Either way the result is read by another
parser and compared with what should have come out: a file that cannot be edited safely is refused, not damaged.
"""

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from snapshotter.containerd.lines import Part, commented, keys_of, literal, table
from snapshotter.errors import ConfigError

MARK = "Added by `snapshotter config containerd --write`; --revert takes it out."

_VERSION_LINE = re.compile(r"(?m)^[ \t]*version[ \t]*=[ \t]*\d+[ \t]*(?:#[^\r\n]*)?(?:\r?\n|$)")
_TABLE_LINE = re.compile(r"(?m)^[ \t]*\[")

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One key that got a value. `before` is the TOML of what it was, None if it was not there."""

    path: KeyPath
    after: Any
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Keys that came together: as `text` inserted somewhere, or, if that is "", each in its table."""

    keys: tuple[Key, ...]
    text: str = ""


@dataclass(slots=True)
class Taken:
    """A file without our edits; `kept` are keys that somebody has changed since, and that stay as they are."""

    text: str
    kept: list[KeyPath] = field(default_factory=list)


def read(text: str, source: str) -> dict[str, Any]:
    """The tables of a file. Raises ConfigError with file and line."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}; mend it first, nothing was changed") from None


def dig(tables: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What is at `path`, None if nothing is."""
    value: Any = tables
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def put(text: str, part: Part, source: str, mark: str = MARK) -> tuple[str, list[Edit]]:
    """Return `text` with the keys of `part`, and the edits that lead there: none if they were there.

    `mark` is a sentence that goes before what is added.

    Raises:
        ConfigError: the file cannot be edited safely; the message has the lines to write by hand.
    """
    edits: list[Edit] = []
    tables = read(text, source)
    there = {key: dig(tables, (*part.table, key)) for key in part.keys}
    missing = {key: value for key, value in part.keys.items() if there[key] is None}
    other = {key: value for key, value in part.keys.items() if there[key] not in (None, value)}
    if other:
        keys = tuple(Key((*part.table, key), value, _raw(text, (*part.table, key))) for key, value in other.items())
        changed = _changed(text, keys)
        if changed is None or not _reads_as(changed, _with(tables, keys)):
            raise _unsafe(source, part)
        text, tables = changed, read(changed, source)
        edits.append(Edit(keys))
    if missing:
        keys = tuple(Key((*part.table, key), value) for key, value in missing.items())
        wanted = _with(tables, keys)
        inserted = _inserted(text, replace(part, keys=missing), wanted, mark)
        if inserted is None:  # an inline table, or dotted keys: nothing that a header can be put to
            changed = _changed(text, keys)
            if changed is None or not _reads_as(changed, wanted):
                raise _unsafe(source, part)
            inserted = changed, ""
        text, chunk = inserted
        edits.append(Edit(keys, chunk))
    return text, edits


def _inserted(text: str, part: Part, wanted: Mapping[str, Any], mark: str) -> tuple[str, str] | None:
    """`text` with keys that it does not have, and what was inserted for that; None if nothing can be inserted safely.

    They go below the header of their table, or with a new header to the end.
    """
    lines = text.splitlines(keepends=True)
    at = 0
    for number, line in enumerate(lines):
        at += len(line)
        if not _is_header(line, part.table):
            continue
        following = lines[number + 1] if number + 1 < len(lines) else ""
        indent = following[: len(following) - len(following.lstrip())] if following.strip() else "  "
        words = (commented(mark) if mark else "") + keys_of(part)
        chunk = _in_style("".join(f"{indent}{word}\n" for word in words.splitlines()), text)
        if not line.endswith("\n"):
            chunk = _newline(text) + chunk
        if _reads_as(text[:at] + chunk + text[at:], wanted):
            return text[:at] + chunk + text[at:], chunk
    chunk = _in_style(commented(*filter(None, (mark, part.why))) + table(part), text)
    chunk = (_newline(text) if text.strip() else "") + chunk
    if text and not text.endswith("\n"):
        chunk = _newline(text) + chunk
    return (text + chunk, chunk) if _reads_as(text + chunk, wanted) else None


def _is_header(line: str, path: KeyPath) -> bool:
    """Whether a line is the header of the table at `path`, however its words are quoted."""
    if not line.lstrip().startswith("["):
        return False
    try:
        tables: Any = tomllib.loads(line)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return False
    for key in path:
        if not isinstance(tables, dict) or list(tables) != [key]:
            return False
        tables = tables[key]
    return not tables


def _unsafe(source: str, part: Part) -> ConfigError:
    return ConfigError(f"{source} cannot be edited safely; nothing was changed. Write into it yourself:\n{table(part)}")


def put_import(text: str, entry: str, source: str) -> tuple[str, list[Edit]]:
    """Return `text` whose `imports` name `entry`, and the edits that lead there. Raises as `put`."""
    tables = read(text, source)
    imports = tables.get("imports", [])
    if entry in imports:
        return text, []
    after = [*imports, entry]
    key = Key(("imports",), after, _raw(text, ("imports",)))
    wanted = _with(tables, [key])
    if key.before is None:
        top = _TABLE_LINE.search(text)
        version = _VERSION_LINE.search(text, 0, top.start() if top else len(text))
        at = version.end() if version else 0
        chunk = _in_style(f"{commented(MARK)}imports = {literal(after)}\n", text)
        if at and text[at - 1] != "\n":
            chunk = _newline(text) + chunk
        if _reads_as(text[:at] + chunk + text[at:], wanted):
            return text[:at] + chunk + text[at:], [Edit((key,), chunk)]
    changed = _changed(text, (key,))
    if changed is None or not _reads_as(changed, wanted):
        raise ConfigError(
            f"{source} cannot be edited safely; nothing was changed. Add this file to its imports: {entry}"
        )
    return changed, [Edit((key,))]


def take(text: str, edits: Sequence[Edit], source: str) -> Taken:
    """Return `text` without `edits`, which `put` and `put_import` made once; what was changed since stays.

    Raises:
        ConfigError: the file cannot be edited safely; the message names the keys to take out by hand.
    """
    taken = Taken(text)
    for edit in reversed(edits):
        tables = read(taken.text, source)
        ours = [key for key in edit.keys if dig(tables, key.path) == key.after]
        if edit.text and len(ours) == len(edit.keys) and taken.text.count(edit.text) == 1:
            cut = taken.text.replace(edit.text, "")
            if _pruned(read(cut, source)) == _pruned(_without(tables, ours)):
                taken.text = cut
                continue
        for key in edit.keys:
            _take_key(taken, key, source)
    return taken


def _take_key(taken: Taken, key: Key, source: str) -> None:
    tables = read(taken.text, source)
    now = dig(tables, key.path)
    before = tomllib.loads(f"x = {key.before}")["x"] if key.before is not None else None
    if now is None or now == before:
        return
    if now != key.after:
        if not isinstance(now, list) or not isinstance(key.after, list):
            taken.kept.append(key.path)
            return
        # A list that has grown since loses what we added; the rest is somebody else's.
        ours = [entry for entry in key.after if entry not in (before or [])]
        key = Key(key.path, [entry for entry in now if entry not in ours])
        wanted = _with(tables, [key])
        changed = _changed(taken.text, (key,))
    elif key.before is not None:
        wanted = _with(tables, [replace(key, after=before)])
        changed = _changed(taken.text, (Key(key.path, tomlkit.value(key.before)),))
    else:
        wanted = _without(tables, [key])
        changed = _removed(taken.text, key.path)
    if changed is None or _pruned(read(changed, source)) != _pruned(wanted):
        raise ConfigError(
            f"{source} cannot be edited safely; nothing was changed. Take out yourself: {'.'.join(key.path)}"
        )
    taken.text = changed


def _changed(text: str, keys: Sequence[Key]) -> str | None:
    """`text` with values set by tomlkit; None where that does not know how."""
    try:
        document = tomlkit.parse(text)
        for key in keys:
            at: Any = document
            for name in key.path[:-1]:
                at = at[name]
            at[key.path[-1]] = key.after
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _removed(text: str, path: KeyPath) -> str | None:
    """`text` without a key, and without tables that are empty thereby."""
    try:
        document = tomlkit.parse(text)
        parents: list[Any] = [document]
        for name in path[:-1]:
            parents.append(parents[-1][name])
        for parent, name in zip(reversed(parents), reversed(path), strict=True):
            del parent[name]
            if len(parent):
                break
        return tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _raw(text: str, path: KeyPath) -> str | None:
    """The TOML of a value as the file spells it."""
    tables = tomllib.loads(text)
    if dig(tables, path) is None:
        return None
    item: Any = tomlkit.parse(text)
    for name in path:
        item = item[name]
    return literal(item) if isinstance(item, bool) else str(item.as_string())


def _reads_as(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except (tomllib.TOMLDecodeError, ValueError):
        return False


def _set(tables: dict[str, Any], path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        inner = tables.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(path[:-1])} is not a table in containerd's file; nothing was changed")
        tables = inner
    tables[path[-1]] = value


def _with(tables: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(tables))
    for key in keys:
        _set(changed, key.path, key.after)
    return changed


def _without(tables: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """`tables` without `keys`, and without tables that are empty thereby."""
    left: dict[str, Any] = copy.deepcopy(dict(tables))
    for key in keys:
        parents: list[Any] = [left]
        for name in key.path[:-1]:
            parents.append(parents[-1][name])
        for parent, name in zip(reversed(parents), reversed(key.path), strict=True):
            del parent[name]
            if parent:
                break
    return left


def _pruned(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` without empty ones: whether a header without keys stands there makes no difference to containerd."""
    left = {key: _pruned(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    return {key: value for key, value in left.items() if value != {}}


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _in_style(chunk: str, text: str) -> str:
    return chunk.replace("\n", _newline(text))
