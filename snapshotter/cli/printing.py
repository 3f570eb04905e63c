"""Words of others made safe for a terminal. Apart from what draws tables: whoever says why nothing works needs no more than this."""


def printable(text: str) -> str:
    """Return `text` with whatever could steer a terminal escaped: an image's names are its author's words."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)
