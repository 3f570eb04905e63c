import glob
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.image.convert.globs import parse_glob


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/usr/bin/*", ["usr/bin/a", "usr/bin/.b"], ["usr/bin", "usr/bin/a/b", "usr/binary"]),
        ("lib/?.so", ["lib/a.so"], ["lib/ab.so", "lib/.so", "lib/a/so"]),
        ("lib/[a-c]", ["lib/a", "lib/c"], ["lib/d", "lib/-"]),
        ("lib/[!a-c]", ["lib/d"], ["lib/a"]),
        ("lib/[^a-c]", ["lib/d"], ["lib/a"]),
        ("lib/[*]", ["lib/*"], ["lib/a"]),
        ("lib/[x", ["lib/[x"], ["lib/x"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab/c"]),
        ("**/*.py", ["x.py", "a/b/x.py"], ["x.pyc"]),
        ("a/**/**/b", ["a/b", "a/x/y/b"], ["a/b/c"]),
        ("a/x**y", ["a/xy", "a/x1y"], ["a/x/y"]),
        ("./a//../b/*", ["b/c"], ["a/c"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_pattern_stands_for_names_as_in_a_shell(pattern: str, yes: list[str], no: list[str]) -> None:
    found = parse_glob(pattern)
    assert [name for name in [*yes, *no] if found.matches(name)] == yes


def test_pattern_that_would_be_tried_in_every_way_is_not() -> None:
    assert not parse_glob("/".join(["**/*a*"] * 40) + "/b").matches("/".join(["aaaaaaaaaa"] * 200))


@given(
    names=st.sets(st.text("ab.", min_size=1, max_size=3).filter(lambda name: name.strip(".")), max_size=6),
    pattern=st.lists(st.sampled_from(["*", "**", "a", "?b", "[ab]", "[!a]*", "b*"]), min_size=1, max_size=3),
)
def test_python_finds_the_same_files(
    names: set[str], pattern: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("tree")
    (top / "a").mkdir()
    for place in (top, top / "a", top / "b." / "a"):
        place.mkdir(parents=True, exist_ok=True)
        for name in names - {"a", "b."}:
            (place / name).touch()
    files = [os.path.relpath(Path(at, name), top) for at, _, inside in os.walk(top) for name in inside]
    expected = glob.glob("/".join(pattern), root_dir=top, recursive=True, include_hidden=True)
    found = parse_glob("/".join(pattern))
    assert {name for name in files if found.matches(name)} == {name for name in expected if (top / name).is_file()}
