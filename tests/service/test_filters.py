"""containerd's filter language (containerd-contract 1.4)."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgument
from snapshotter.service.filters import compile_filters

THING = {"name": "k8s.io/1/a b", "parent": "", "labels.a": "1", "labels.x.y/z": "v,w", "labels.e": "é/|"}


def field(path: Sequence[str]) -> str | None:
    """A thing with these fields."""
    return THING.get(".".join(path))


def matches(*filters: str) -> bool:
    """Whether the thing matches."""
    return compile_filters(filters)(field)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "parent",
        'parent==""',
        "labels.a==1",
        "labels.a == 1",
        " labels. a ==\t1",
        "labels.a!=2",
        "labels.none!=2",
        'labels."x.y/z"=="v,w"',
        'labels."x.y/z"=="\\x76\\u002c\\167"',
        'labels.e=="\\u00e9/|"',
        'labels.e=="\\303\\251/\\U0000007c"',
        'name=="k8s.io/1/a b"',
        "name~=a",
        "name~=^k8s",
        "name~=/1.a b$/",
        "name~=|k8s.io.1|",
        'name~="k8s\\\\.io"',
        "name~=/k8s\\/|x/".replace("\\/|x", "."),
        'labels.a==1,parent=="",name',
        '"name"~=k8s',
        "labels.a==1,labels.a!=2",
        "labels.e==é/|",
    ],
)
def test_matches(text: str) -> None:
    assert matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "labels.none",
        "labels.none==1",
        'labels.none==""',
        "labels.none~=/.*/",
        "labels.a==2",
        "labels.a!=1",
        "labels.a==11",
        "labels.a==1,name==other",
        "name~=^a",
        "name==k8s.io/1/a",
        'labels.e=="\\xff"',
        'labels.e=="\\ud800"',
        "other",
        "labels",
    ],
)
def test_does_not_match(text: str) -> None:
    assert not matches(text)


def test_several_filters_are_alternatives_and_none_matches_all() -> None:
    assert matches()
    assert matches("labels.none", "labels.a")
    assert matches("labels.none", "")
    assert not matches("labels.none", "other")


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "name,",
        ",name",
        "name,,parent",
        "name ,parent",
        "name parent",
        "name=",
        "name=x",
        "name==",
        "name===x",
        "name=~x",
        "name<x",
        "name== ",
        "name==,x",
        "name==.x",
        "name .x",
        "name~=.x",
        "name=='x' y",
        "name==/x/",
        "name==|x|",
        "/name/==x",
        ".name",
        "name.",
        "name..x",
        'name=="x',
        'name=="x\n"',
        'name=="\\q"',
        'name=="\\x1"',
        'name=="\\08"',
        'name=="\\400"',
        'name=="\\U00110000"',
        'name=="\\',
        'name=="a"b',
        "name~=(",
        "name~=/(/",
        "name==\x00",
        "nämé==x",
    ],
)
def test_syntax_errors_name_the_filter_and_the_place(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"character [0-9]+"):
        compile_filters(["name", text])


@given(st.text())
def test_any_text_is_a_filter_or_an_invalid_argument(text: str) -> None:
    try:
        found = compile_filters([text])
    except InvalidArgument:
        return
    assert found(field) in (True, False)


def go_quoted(text: str, how: Sequence[int]) -> str:
    """Quote as Go may: each character plainly or by one of its escapes, in turn as `how` says."""
    parts = []
    for position, character in enumerate(text):
        code = ord(character)
        choice = how[position % len(how)]
        if choice == 0 and character not in '"\\\n':
            parts.append(character)
        elif choice == 1:
            parts.append("".join(f"\\x{byte:02x}" for byte in character.encode()))
        elif choice == 2:
            parts.append("".join(f"\\{byte:03o}" for byte in character.encode()))
        else:
            parts.append(f"\\U{code:08x}")
    return f'"{"".join(parts)}"'


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_quoting_as_go_does_comes_back(text: str, how: list[int]) -> None:
    exact = compile_filters([f"name=={go_quoted(text, how)}"])
    assert exact(lambda path: text)
    assert not exact(lambda path: text + "x")
    by_label = compile_filters([f"labels.{go_quoted(text, how)}"])
    assert by_label(lambda path: "here" if path == ("labels", text) else None)
