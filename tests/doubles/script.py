"""The little language in which a test tells a loopback server how to misbehave.

A script is words, one per request, then `ok` for ever: `"503*3 cut@900 ok"`. `word*` holds for ever, `word*3` three times.

    ok                 what was asked for
    <status>[@S]       that status; 401 with the server's challenge; @S adds Retry-After: S
    cut@N              N bytes of the body, then the connection closes
    stall@N            N bytes of the body, then nothing more; the connection stays
    hang               no answer at all; the connection stays
    close              the connection closes instead of an answer
    slow@S             S seconds before the answer
    endless            a body that does not stop
    long@N             N bytes more than the range that the headers promise
    short@N            a correct 206 for the first N bytes of what was asked
    200-to-range       status 200 and the whole blob
    wrong-range        206 for bytes that nobody asked for
    no-range           206 without Content-Range
    multipart          206 with Content-Type multipart/byteranges
    gzip               Content-Encoding: gzip
    corrupt            the right answer with its first byte changed
    redirect:NAME      307 to the same path at the server that `redirects` knows as NAME
    redirect-loop      307 to the path itself
    redirect-nowhere   307 without Location

and, for ranges of blobs only (`tests.doubles.wire_faults`):

    reset              the connection is reset instead of an answer; -in-headers, -in-body@N: in the middle of one
    cut-in-headers     the connection closes amid the headers
    cut-without-length@N   N bytes of a body that only the connection's end ends; `no-length`: all of it, and right
    http-1.0           the right answer of an old server
    drip@S             the right answer, a byte every S seconds; drip-headers@S: headers that do not end
    noise              1xx answers before the right one; endless-noise: instead of it
    chunked            the right answer in chunks; chunked-cut, chunked-without-end, chunked-nonsense, chunked-huge
    garbage, tls, strange-status, two-lengths, negative-length, large-header, many-headers    no HTTP
    empty              a right 206 without a byte
    doubled            every byte twice over, and the length says so; doubled-inside: some, in the right length
    second-answer      zeros behind the right answer, as if more had been asked
    flip@N, zeros, of-another      the right length, wrong bytes
    gzipped            really gzip
    wrong-last, wrong-total, backward-range, nonsense-range    another Content-Range
    page               a page of some other server
    later@S            503 with a Retry-After that is a date
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.doubles.wire_faults import FAULTS


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One word of a script: its name and the number or name after `@` or `:`."""

    name: str = "ok"
    value: float = 0.0
    target: str = ""

    @property
    def status(self) -> int | None:
        """The status that the word is, None for a word that is none."""
        return int(self.name) if self.name.isdigit() else None


OK = Behaviour()
NAMES = frozenset(
    {
        *("ok", "cut", "stall", "hang", "close", "slow", "endless", "long", "short", "corrupt"),
        *("200-to-range", "wrong-range", "no-range", "multipart", "gzip"),
        *("redirect", "redirect-loop", "redirect-nowhere"),
        *FAULTS,
    }
)


def parse_script(text: str) -> Iterator[Behaviour]:
    """Yield the behaviours of `text` in order; endless if its last word is starred without a number."""
    words = [_parse_word(word) for word in text.split()]
    return (behaviour for behaviour, times in words for behaviour in _repeat(behaviour, times))


def _repeat(behaviour: Behaviour, times: int | None) -> Iterator[Behaviour]:
    while times is None or times > 0:
        yield behaviour
        times = times if times is None else times - 1


def _parse_word(word: str) -> tuple[Behaviour, int | None]:
    times: int | None = 1
    if "*" in word:
        word, _, count = word.rpartition("*")
        times = int(count) if count else None
    name, _, value = word.partition("@")
    name, _, target = name.partition(":")
    if name not in NAMES and not name.isdigit():
        raise ValueError(f"no such behaviour: {word}")
    return Behaviour(name, float(value or 0), target), times
