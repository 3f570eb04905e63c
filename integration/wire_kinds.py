"""What a wire between daemon and registry can do to a request, for the test that does all of it at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

RIGHT, EIO = "right", "EIO"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a registry does to the requests for one blob: once, and until somebody mends it.

    `word` is of `tests.doubles.script`, as are those of the store to which `redirect:store` leads. `once` and `lasting` are
    the worst that a container's read may come to.
    """

    word: str
    once: str = RIGHT
    lasting: str = EIO
    store_once: str = "ok"
    store_lasting: str = "ok"


def harmless(word: str) -> Kind:
    """What looks odd and is right."""
    return Kind(word, lasting=RIGHT)


def final(word: str) -> Kind:
    """An answer that is taken for the registry's last word: the read fails at once."""
    return Kind(word, once=EIO)


KINDS: Mapping[str, Kind] = {
    # Connections.
    "reset": Kind("reset"),
    "reset-in-headers": Kind("reset-in-headers"),
    "reset-at-first-byte": Kind("reset-in-body@0"),
    "reset-in-body": Kind("reset-in-body@5000"),
    "closed": Kind("close"),
    "closed-in-headers": Kind("cut-in-headers"),
    "never-answered": Kind("hang"),
    "dead-host": Kind("redirect:dead"),
    # Bodies that end too soon, too late or never.
    "cut": Kind("cut@0"),
    "cut-in-body": Kind("cut@5000"),
    "cut-without-length": Kind("cut-without-length@5000"),
    "empty": Kind("empty"),
    "long": harmless("long@9"),
    "endless": harmless("endless"),
    "short": harmless("short@6000"),
    "doubled": harmless("doubled"),
    "second-answer": harmless("second-answer"),
    "stalled-after-headers": Kind("stall@0"),
    "stalled-in-body": Kind("stall@5000"),
    "drip": Kind("drip@0.2"),
    "headers-drip": Kind("drip-headers@0.2"),
    "slow": harmless("slow@0.5"),
    # Old, odd or broken HTTP.
    "no-length": harmless("no-length"),
    "http-1.0": harmless("http-1.0"),
    "noise": harmless("noise"),
    "endless-noise": Kind("endless-noise"),
    "chunked": harmless("chunked"),
    "chunked-cut": Kind("chunked-cut"),
    "chunked-nonsense": Kind("chunked-nonsense"),
    "chunked-huge": Kind("chunked-huge"),
    "garbage": Kind("garbage"),
    "tls-record": Kind("tls"),
    "large-header": Kind("large-header"),
    "many-headers": Kind("many-headers"),
    "two-lengths": Kind("two-lengths"),
    "negative-length": Kind("negative-length"),
    "strange-status": Kind("strange-status"),
    # Another range than was asked for.
    "whole-blob": Kind("200-to-range"),
    "page": Kind("page"),
    "wrong-first": Kind("wrong-range"),
    "wrong-last": Kind("wrong-last"),
    "wrong-total": Kind("wrong-total"),
    "backward-range": Kind("backward-range"),
    "nonsense-range": Kind("nonsense-range"),
    "no-range": Kind("no-range"),
    "multipart": Kind("multipart"),
    "gzipped": Kind("gzipped"),
    "called-gzip": Kind("gzip"),
    # Wrong bytes.
    "flipped": Kind("flip@5000"),
    "zeros": Kind("zeros"),
    "of-another": Kind("of-another"),
    "doubled-inside": Kind("doubled-inside"),
    # Statuses.
    "400": final("400"),
    "401": Kind("401"),
    "403": Kind("403"),
    "404": final("404"),
    "408": Kind("408"),
    "416": Kind("416"),
    "429": Kind("429@1"),
    "500": Kind("500"),
    "502": Kind("502"),
    "503": Kind("503@1"),
    "503-until-a-date": Kind("later@2"),
    "504": Kind("504"),
    # Redirects.
    "redirect-loop": Kind("redirect-loop"),
    "redirect-home": Kind("redirect:home"),
    "redirect-nowhere": final("redirect-nowhere"),
    "redirect-to-tls": final("redirect:tls"),
    "redirect-to-metadata": final("redirect:metadata"),
    "redirect-expired": Kind("redirect:store*", store_once="ok 403 ok", store_lasting="403*"),
    "redirect-to-a-sick-store": Kind("redirect:store*", store_once="503 cut@5000 ok", store_lasting="503*"),
}
ROUNDS = ("twice", "thrice", "behind-another", "again-and-again")
"""Other moments of the same faults."""

Words = Callable[[Kind], tuple[str, str]]
"""What the registry and the store do with the requests for a kind's blob."""


def once(kind: Kind) -> tuple[str, str]:
    return kind.word, kind.store_once


def lasting(kind: Kind) -> tuple[str, str]:
    return kind.word if kind.word.endswith("*") else f"{kind.word}*", kind.store_lasting


def in_round(name: str) -> Words:
    """The words of one of `ROUNDS`."""

    def words(kind: Kind) -> tuple[str, str]:
        word = kind.word.removesuffix("*")
        own = {
            "twice": f"{word}*2",
            "thrice": f"{word}*3",
            "behind-another": f"503 cut@3000 {word}",
            "again-and-again": f"short@4000 {word} short@4000 {word} short@4000 {word}",
        }[name]
        return own, kind.store_once

    return words
