"""Building of an index from a TOC."""

from .layout import BuildOptions


def build_index(toc_json: bytes, options: BuildOptions) -> bytes:
    """Check a whole TOC and return its index as bytes.

    Raises:
        FormatError: anything in the TOC that is not sound.
    """
    raise NotImplementedError
