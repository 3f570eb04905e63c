"""Regular expressions of filters: they match what Python's match, and never take long."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapshotter.service.patterns import Pattern

ATOMS = st.sampled_from(
    ("a", "b", ".", "[ab]", "[^a]", "[a-c1]", r"\d", r"\W", r"\s", "^", "$", r"\b", r"\B", r"\.", "é", "")
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(("*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}", "{2,}"))).map(
            lambda both: f"({both[0]}){both[1]}"
        ),
    ),
    max_leaves=8,
)


@example(r"\B", [""])
@given(PATTERNS, st.lists(st.text("ab1. é", max_size=8), min_size=1, max_size=4))
def test_pattern_matches_what_python_s_own_matches(pattern: str, texts: list[str]) -> None:
    ours, theirs = Pattern(pattern), re.compile(pattern)
    for text in texts:
        assert ours.search(text) is (theirs.search(text) is not None), (pattern, text)


def test_end_is_the_end_as_in_go_and_not_before_a_last_newline() -> None:
    assert Pattern("a$").search("ba")
    assert not Pattern("a$").search("a\n")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "^(a|a)*$", "(.*)*b$", "^(a*)*(a*)*(a*)*$", "a*a*a*a*a*a*a*c", "(a?){500}a{500}$"]
)
def test_pattern_that_would_take_for_ever_is_matched_at_once(pattern: str) -> None:
    began = time.thread_time()
    assert not Pattern(pattern).search("a" * 400 + "!")
    assert time.thread_time() - began < 60


@pytest.mark.parametrize(
    "pattern",
    [
        "(a)\\1",
        "(?=a)",
        "(?<!a)b",
        "(?i)a",
        "(?i:a)",
        "(a{1000}){1000}",
        "(){99999999}",
        "((){4000}){4000}",
        "(",
        "[",
        "a{9999999999}",
        "(" * 5000,
    ],
)
def test_what_no_automaton_can_do_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        Pattern(pattern)
