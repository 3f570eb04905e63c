"""A TOML file changed and changed back: the same bytes, whatever stood in it."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.containerd.editing import Edit, dig, put, put_import, take
from snapshotter.containerd.lines import Part
from snapshotter.errors import ConfigError
from tests.containerd.main_files import CRI, OF_1, OF_2

PULLS = Part(
    ("plugins", CRI, "containerd"), {"snapshotter": "estargz", "disable_snapshot_annotations": False}, "What pods use."
)
PLUGIN = Part(("proxy_plugins", "estargz"), {"type": "snapshot", "address": "/run/e.sock"}, "The socket.")
FILES = OF_1 | {f"{name}-of-2": text for name, text in OF_2.items()}
ENTRY = "/etc/containerd/conf.d/estargz.toml"


def changed(text: str) -> tuple[str, list[Edit]]:
    """The file with all three kinds of change."""
    edits: list[Edit] = []
    for part in (PLUGIN, PULLS):
        text, more = put(text, part, "f")
        edits += more
    text, more = put_import(text, ENTRY, "f")
    return text, [*edits, *more]


def holds(text: str) -> bool:
    tables = tomllib.loads(text)
    parts = all(
        dig(tables, (*part.table, key)) == value for part in (PLUGIN, PULLS) for key, value in part.keys.items()
    )
    return parts and tables["imports"][-1] == ENTRY


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_the_way_back_leads_to_the_same_bytes(text: str) -> None:
    after, edits = changed(text)
    assert holds(after)
    assert take(after, edits, "f").text == text


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_changed_twice_is_changed_once(text: str) -> None:
    after, _ = changed(text)
    assert changed(after) == (after, [])


VALUES = st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=2))
NAMES = st.sampled_from(["a", "containerd", "snapshotter", CRI, "runtimes", "x y", "plugins", "type", "cri"])
COMMENTS = st.sampled_from(["", "# note", "  # [plugins]", "#imports = []"])
BLANKS = st.sampled_from(["", "\n", "  \n", "# alone\n"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """TOML as people write it: keys on top, tables in any order, comments, blanks, either end of lines."""
    lines = [f"{draw(BLANKS)}version = 2 {draw(COMMENTS)}\n"] if draw(st.booleans()) else []
    if draw(st.booleans()):
        lines.append(f"imports = {json.dumps(draw(st.lists(st.sampled_from(['/a', '/b/*.toml']), unique=True)))}\n")
    paths = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
    special = st.sampled_from([("plugins",), ("plugins", CRI), ("plugins", CRI, "containerd"), ("proxy_plugins", "e")])
    for path in draw(st.lists(st.one_of(special, paths), unique=True, max_size=5)):
        lines.append(f"{draw(BLANKS)}[{'.'.join(map(json.dumps, path))}]{draw(COMMENTS)}\n")
        for key in draw(st.lists(NAMES, unique=True, max_size=3)):
            indent = draw(st.sampled_from(["", "  ", "\t"]))
            lines.append(f"{indent}{json.dumps(key)} = {json.dumps(draw(VALUES))} {draw(COMMENTS)}\n")
    text = "".join(lines)
    text = text.removesuffix("\n") if draw(st.booleans()) else text
    return text.replace("\n", "\r\n") if draw(st.booleans()) else text


@given(text=documents())
def test_any_file_comes_back_as_it_was_or_is_refused_whole(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        after, edits = changed(text)
    except ConfigError:
        return
    assert holds(after)
    back = take(after, edits, "f")
    assert back.text == text
    assert back.kept == []


@given(text=documents())
def test_whatever_else_changes_meanwhile_stays(text: str) -> None:
    try:
        after, edits = changed(text)
        later = after + "\n[later]\nkey = 1\n# a note\n"
        tomllib.loads(later)
    except (ConfigError, tomllib.TOMLDecodeError):
        return
    assert tomllib.loads(take(later, edits, "f").text) == {**tomllib.loads(text), "later": {"key": 1}}


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a table"):
        put(f'[plugins]\n"{CRI}" = 3\n', PULLS, "f")


def test_broken_toml_is_named_with_file_and_line() -> None:
    with pytest.raises(ConfigError, match=r"f: not valid TOML: .*line 2"):
        put("version = 2\n=\n", PULLS, "f")


def test_a_header_in_a_string_of_several_lines_is_no_header() -> None:
    text = f'x = """\n[plugins."{CRI}".containerd]\n"""\n'
    after, edits = put(text, PULLS, "f")
    tables: dict[str, Any] = tomllib.loads(after)
    assert tables["x"] == tomllib.loads(text)["x"]
    assert take(after, edits, "f").text == text
