"""WWW-Authenticate in all the forms that registries send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.registry.challenge import parse_challenges

BEARER = 'Bearer realm="https://auth.test/token",service="reg",scope="repository:a/b:pull,push"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            [BEARER],
            [("bearer", {"realm": "https://auth.test/token", "service": "reg", "scope": "repository:a/b:pull,push"})],
        ),
        (['BASIC REALM="x y"'], [("basic", {"realm": "x y"})]),
        (['Basic realm=x, Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (['Basic realm="x"', "Bearer realm=y"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (["Negotiate, Basic"], [("negotiate", {}), ("basic", {})]),
        (["Negotiate YWJj==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        ([r'Basic realm="a \"quoted\" \\ one"'], [("basic", {"realm": r'a "quoted" \ one'})]),
        (['Bearer realm = "x" ,  service= y'], [("bearer", {"realm": "x", "service": "y"})]),
        ([',, Basic realm="x",,'], [("basic", {"realm": "x"})]),
        (['Bearer realm="unclosed'], [("bearer", {"realm": ""})]),
        (
            ["Basic realm=", "Bearer realm=https://a.test/t?x=y"],
            [("basic", {"realm": ""}), ("bearer", {"realm": "https://a.test/t?x=y"})],
        ),
        (["Bearer"], [("bearer", {})]),
        ([""], []),
        (['"'], []),
        ([], []),
    ],
)
def test_a_header_gives_its_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    found = [(challenge.scheme, dict(challenge.parameters)) for challenge in parse_challenges(headers)]
    assert found == expected


@given(st.lists(st.text(max_size=200) | st.from_regex(r'[a-zA-Z0-9 ,="\\/+]{0,80}', fullmatch=True), max_size=3))
def test_any_header_gives_some_challenges(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_long_header_is_read_in_linear_time() -> None:
    assert len(parse_challenges(['a="' + "\\" * 200_000, "a," * 200_000, "a =" * 100_000])) < 20_000
