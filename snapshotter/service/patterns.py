"""Regular expressions of filters, matched in time that grows with pattern and text alone.

Python's own matcher goes back over what it has tried: `(a+)+$` against forty letters takes hours, and holds the interpreter, and
with it every file system of the node. So Python parses a pattern, and an automaton matches it here, as in Go.

Source: Russ Cox, "Regular Expression Matching: the Virtual Machine Approach" (Pike's construction).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from re import _parser  # type: ignore[attr-defined]  # not public, but there is no other parser
from typing import Any

PROGRAM_MAX = 5000
"""Instructions of a pattern: `{1000}` writes what it repeats a thousand times."""

Test = Callable[[str], bool]
Place = Callable[[str, int], bool]

_CATEGORIES = {
    f"CATEGORY_{kind}{name}": re.compile(code.upper() if kind else code)
    for name, code in (("DIGIT", r"\d"), ("SPACE", r"\s"), ("WORD", r"\w"))
    for kind in ("", "NOT_")
}


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _at_boundary(text: str, at: int) -> bool:
    return _is_word(text, at - 1) != _is_word(text, at)


_EMPTY_HAS_NON_BOUNDARY = re.search(r"\B", "") is not None

_PLACES: dict[str, Place] = {
    "AT_BEGINNING": lambda _, at: at == 0,
    "AT_BEGINNING_STRING": lambda _, at: at == 0,
    "AT_END": lambda text, at: at == len(text),
    "AT_END_STRING": lambda text, at: at == len(text),
    "AT_BOUNDARY": _at_boundary,
    # An empty text has none before Python 3.14.
    "AT_NON_BOUNDARY": lambda text, at: not _at_boundary(text, at) and (bool(text) or _EMPTY_HAS_NON_BOUNDARY),
}


class Pattern:
    """A regular expression without what no automaton can do: references to groups, and looks ahead or behind."""

    def __init__(self, text: str) -> None:
        """Raises re.error: it is no regular expression, or one that is not understood here."""
        try:
            tree = _parser.parse(text)
        except (OverflowError, RecursionError) as error:
            raise re.error(str(error)) from None
        if tree.state.flags & ~re.UNICODE:
            raise re.error("flags are not understood here")
        # Each instruction is a test of a character, a test of the place, or where to go on; the end is None.
        self._program: list[Test | tuple[Place] | list[int] | None] = []
        self._emit(tree)
        self._add(None)

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in `text`."""
        states: set[int] = set()
        for at in range(len(text) + 1):
            reached = self._closure((*states, 0), text, at)
            if reached is None:
                return True
            if at < len(text):
                states = {state + 1 for state, test in reached if test(text[at])}
        return False

    def _closure(self, states: Iterable[int], text: str, at: int) -> list[tuple[int, Test]] | None:
        """The tests of a character that come next; None if the end was reached."""
        seen: set[int] = set()
        left = list(states)
        found: list[tuple[int, Test]] = []
        while left:
            state = left.pop()
            if state in seen:
                continue
            seen.add(state)
            instruction = self._program[state]
            if instruction is None:
                return None
            if isinstance(instruction, list):
                left += instruction
            elif isinstance(instruction, tuple):
                if instruction[0](text, at):
                    left.append(state + 1)
            else:
                found.append((state, instruction))
        return found

    # --- from Python's tree

    def _add(self, instruction: Test | tuple[Place] | list[int] | None) -> int:
        if len(self._program) >= PROGRAM_MAX:
            raise re.error("too long")
        self._program.append(instruction)
        return len(self._program) - 1

    def _emit(self, tree: Iterable[tuple[Any, Any]]) -> None:
        for operator, argument in tree:
            name = str(operator)
            if name == "AT":
                self._add((_PLACES[str(argument)],))
            elif name == "SUBPATTERN":
                _, added, removed, inner = argument
                if added or removed:
                    raise re.error("flags are not understood here")
                self._emit(inner)
            elif name == "BRANCH":
                self._emit_branch(argument[1])
            elif name in {"MAX_REPEAT", "MIN_REPEAT"}:
                self._emit_repeat(*argument)
            else:
                self._add(_test(name, argument))

    def _emit_branch(self, alternatives: Sequence[Any]) -> None:
        fork: list[int] = []
        ends: list[list[int]] = []
        self._add(fork)
        for alternative in alternatives:
            fork.append(len(self._program))
            self._emit(alternative)
            ends.append([])
            self._add(ends[-1])
        for end in ends:
            end.append(len(self._program))

    def _emit_repeat(self, least: int, most: Any, inner: Sequence[Any]) -> None:
        for _ in range(least):
            self._add([len(self._program) + 1])  # counts, also where nothing is repeated
            self._emit(inner)
        if most is _parser.MAXREPEAT:
            fork = [len(self._program) + 1]
            start = self._add(fork)
            self._emit(inner)
            self._add([start])
            fork.append(len(self._program))
            return
        forks = []
        for _ in range(most - least):
            forks.append([len(self._program) + 1])
            self._add(forks[-1])
            self._emit(inner)
        for fork in forks:
            fork.append(len(self._program))


def _test(name: str, argument: Any) -> Test:
    """What one character must be."""
    if name == "LITERAL":
        return lambda character: ord(character) == argument
    if name == "NOT_LITERAL":
        return lambda character: ord(character) != argument
    if name == "ANY":
        return lambda character: character != "\n"
    if name == "RANGE":
        low, high = argument
        return lambda character: low <= ord(character) <= high
    if name == "CATEGORY":
        category = _CATEGORIES[str(argument)]
        return lambda character: category.match(character) is not None
    if name == "IN":
        tests = [_test(str(kind), value) for kind, value in argument if str(kind) != "NEGATE"]
        negated = len(tests) != len(argument)
        return lambda character: any(test(character) for test in tests) != negated
    raise re.error("references to groups, and looks ahead or behind, are not understood here")
