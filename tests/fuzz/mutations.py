"""What an attacker makes of sound bytes and sound JSON: values that were right, changed in a few places."""

import copy
import json
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Corpus(list[T]):
    """Sound ones; what a failing example prints must not drown in them."""

    def __repr__(self) -> str:
        return f"Corpus of {len(self)}"


WORDS = (0, 1, 2, 7, 8, 255, 256, 511, 512, 513, 4095, 4096, 1 << 15, 1 << 16, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 32)
BORDERS = (*WORDS, (1 << 32) - 1, 1 << 34, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS = (*BORDERS, -1, -(1 << 31), -(1 << 63), 1 << 64, 1 << 70, 1.5, -0.0)
TEXTS = (
    *("", ".", "..", "/", "//", "a", "a/", "/a", "../a", "a/../b", "./a", "a/./b", "a//b", "\0", "a\0b", "é", "\ufffd"),
    *(".wh.a", ".wh.", ".wh..", ".wh..wh..opq", "d/.wh..wh..opq", ".wh..wh.aufs", ".prefetch.landmark", "stargz.index.json"),
    *("dir", "reg", "symlink", "hardlink", "char", "block", "fifo", "chunk", "zeros", "1970-01-01T00:00:00Z"),
    *("sha256:" + "0" * 64, "sha256:" + "1" * 64, "sha512:" + "1" * 128, "sha256:" + "A" * 64),
    *("x" * 255, "x" * 256, "a/" * 2047, "a/" * 2048, "x" * 5000, "d/" * 100 + "f"),
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, corpus: Corpus[bytes], spare: int = 40) -> bytes:
    """One of `corpus`, changed in up to five places; `spare` bytes at its end are hit as often as all the rest."""
    data = bytearray(corpus[draw(st.integers(0, len(corpus) - 1))])
    for _ in range(draw(st.integers(0, 5))):
        low = draw(st.sampled_from((0, max(0, len(data) - spare))))
        at = draw(st.integers(low, len(data)))
        kind = draw(st.sampled_from(("bit", "byte", "word", "cut", "remove", "repeat", "insert", "text")))
        if kind == "bit" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and at < len(data):
            data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        elif kind == "word":
            word = draw(st.sampled_from(BORDERS)).to_bytes(8, draw(st.sampled_from(("little", "big"))))
            width = draw(st.sampled_from((2, 4, 8)))
            data[at : at + width] = word[:width]
        elif kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            data[at:at] = draw(st.sampled_from(TEXTS)).encode()
    return bytes(data)


VALUES: st.SearchStrategy[Any] = (
    st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.sampled_from((None, True, [], {}, [[]], {"": {}}))
)


@st.composite
def mutated_json(draw: st.DrawFn, corpus: Corpus[Any]) -> bytes:
    """One document of `corpus`, with up to five values replaced, left out, doubled or put elsewhere, as JSON."""
    document = copy.deepcopy(corpus[draw(st.integers(0, len(corpus) - 1))])
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 2, 3, 5)))):
        holder, key = draw(_place(document))
        kind = draw(st.sampled_from(("replace", "replace", "near", "drop", "double", "move")))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(VALUES))
        elif kind == "near" and isinstance(holder[key], int | float):
            holder[key] += draw(st.sampled_from((-1, 1, 4096, -512)))
        elif kind == "drop":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))
        else:
            other, there = draw(_place(document))
            other[there] = copy.deepcopy(holder[key])
        if not document:
            break
    return json.dumps(document, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def _place(draw: st.DrawFn, document: Any) -> tuple[Any, Any]:
    """Somewhere in a document that is not empty: a holder and the key or position in it; mostly deep inside."""
    holder, key = document, draw(_key(document))
    while _keys(holder[key]) and draw(st.integers(0, 11)) < 11:
        holder = holder[key]
        key = draw(_key(holder))
    return holder, key


def _key(holder: Any) -> st.SearchStrategy[Any]:
    keys = _keys(holder)
    inner = [key for key in keys if _keys(holder[key])]
    return st.sampled_from(keys + inner * 8)


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []
