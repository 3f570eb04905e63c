"""containerd's filter language, as List requests carry it.

    filter    = selector *("," selector)            all must match; several filters are alternatives
    selector  = fieldpath [operator value]          without an operator: the field is present
    fieldpath = field *("." field)
    field     = 1*(letter / digit / "_" / "-") / quoted
    operator  = "==" / "!=" / "~="
    value     = quoted / 1*(graphic character but "," and white space)
    quoted    = a Go string between double quotes; after "~=" also between slashes or bars

White space may precede a field, an operator or a value. Source: containerd-contract 1.4; containerd's filters package.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapshotter.errors import InvalidArgument
from snapshotter.service.patterns import Pattern

# The value at a field path, or None where the field is absent.
Fields = Callable[[Sequence[str]], str | None]
Filter = Callable[[Fields], bool]

_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_SIMPLE_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_MAX_RUNE = 0x10FFFF


def compile_filters(filters: Sequence[str]) -> Filter:
    """Return a predicate that is true where any of `filters` matches; without filters it is true everywhere.

    Raises:
        InvalidArgument: a filter that does not follow the grammar, with the place in it.
    """
    alternatives = [_Parser(text).filter() for text in filters]
    if not alternatives:
        return _anything
    return lambda fields: any(matches(fields) for matches in alternatives)


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str
    pattern: Pattern | None

    def __call__(self, fields: Fields) -> bool:
        found = fields(self.path)
        if self.operator == "!=":
            return found != self.value  # an absent field differs from every value
        if found is None:
            return False
        if self.operator == "==":
            return found == self.value
        return self.pattern is None or self.pattern.search(found)


class _Parser:
    """One pass over one filter; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> Filter:
        if not self._text:
            return _anything
        selectors = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._wrong('expected "," or the end')
            self._at += 1
            selectors.append(self._selector())
        return lambda fields: all(matches(fields) for matches in selectors)

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._next() == ".":
            self._at += 1
            path.append(self._field())
        if self._next() in ("", ","):
            return _Selector(tuple(path), "present", "", None)
        operator = self._operator()
        value = self._value('"/|' if operator == "~=" else '"')
        return _Selector(tuple(path), operator, value, self._pattern(value) if operator == "~=" else None)

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _field(self) -> str:
        self._skip_space()
        if self._next() == '"':
            return self._quoted()
        found = _FIELD.match(self._text, self._at)
        if found is None:
            raise self._wrong("expected a field")
        self._at = found.end()
        return found.group()

    def _operator(self) -> str:
        self._skip_space()
        found = _OPERATOR.match(self._text, self._at)
        if found is None or found.group() not in ("==", "!=", "~="):
            raise self._wrong('expected "==", "!=" or "~="')
        self._at = found.end()
        return found.group()

    def _value(self, quotes: str) -> str:
        self._skip_space()
        first = self._next()
        if first != "" and first in quotes:
            return self._quoted()
        if first == "" or first in '"/|.,=!~':
            raise self._wrong("expected a value")
        begin = self._at
        while self._at < len(self._text) and _in_value(self._text[self._at]):
            self._at += 1
        if self._at == begin:
            raise self._wrong("expected a value")
        return self._text[begin : self._at]

    def _pattern(self, value: str) -> Pattern:
        try:
            return Pattern(value)
        except re.error as error:
            raise self._wrong(f"{value!r} is no regular expression: {error}") from error

    def _skip_space(self) -> None:
        while self._at < len(self._text) and _is_space(self._text[self._at]):
            self._at += 1

    def _quoted(self) -> str:
        """Read a quoted string; hexadecimal and octal escapes are bytes, so the result is put together as bytes."""
        quote = self._next()
        self._at += 1
        plain = bytearray()
        while (character := self._next()) != quote:
            if character in ("", "\n"):
                raise self._wrong(f"expected a closing {quote}")
            self._at += 1
            plain += self._escape(quote) if character == "\\" else character.encode("utf-8", "surrogatepass")
        self._at += 1
        # Bytes that are no UTF-8 become characters that no label or name can hold: such a value equals nothing.
        return plain.decode("utf-8", "surrogateescape")

    def _escape(self, quote: str) -> bytes:
        kind = self._next()
        if kind != "" and kind in "01234567":
            code = self._digits(3, 8)
            if code > 255:
                raise self._wrong("an octal escape ends at \\377")
            return bytes([code])
        self._at += 1
        if kind == quote:
            return quote.encode()
        if kind in _SIMPLE_ESCAPES:
            return bytes([_SIMPLE_ESCAPES[kind]])
        if kind not in _HEX_DIGITS:
            raise self._wrong("no such escape")
        code = self._digits(_HEX_DIGITS[kind], 16)
        if kind == "x":
            return bytes([code])
        if code > _MAX_RUNE:
            raise self._wrong("beyond the last character of Unicode")
        return (chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd").encode()

    def _digits(self, count: int, base: int) -> int:
        digits = self._text[self._at : self._at + count]
        allowed = "0123456789abcdefABCDEF" if base == 16 else "01234567"
        if len(digits) < count or any(digit not in allowed for digit in digits):
            raise self._wrong(f"expected {count} digits")
        self._at += count
        return int(digits, base)

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self._text!r}, character {self._at + 1}: {what}")


def _anything(_fields: Fields) -> bool:
    return True


def _is_space(character: str) -> bool:
    return character in "\t\n\v\f\r\x85" or unicodedata.category(character)[0] == "Z"


def _in_value(character: str) -> bool:
    return character != "," and unicodedata.category(character)[0] in "LMNPS"
