"""What the daemon and its TOC workers say to each other, and where what comes of it lies.

Apart from the worker, so that the daemon loads nothing of what only that does.
"""

from pathlib import Path

import msgspec


class Job(msgspec.Struct, frozen=True, tag="index"):
    """One TOC to turn into an index. Paths are absolute; digests are `sha256:<hex>`; sizes and offsets are bytes.

    `section` is the compressed TOC section as it lies in the blob, or for a rebuild (`flavor` empty) the kept TOC.
    """

    section: str
    flavor: str
    codec: str
    toc_offset: int
    toc_end: int
    toc_raw_size: int | None
    payload_end: int
    blob_size: int
    layer_digest: str
    toc_digest: str | None
    section_digest: str | None
    allow_unverified: bool
    toc_directory: str
    index_directory: str


class ImageJob(msgspec.Struct, frozen=True, tag="image"):
    """One index to turn into an EROFS image. Paths are absolute.

    `place` is the store's secret directory name and `domain` the layer's sharing domain: what redirects are made of.
    """

    index: str
    image: str
    place: str
    domain: str
    layer_digest: str


class Done(msgspec.Struct, frozen=True):
    """What came of a job: `reason` is empty if it worked, else a `Reason`, and `message` the sentence."""

    toc_digest: str = ""
    verified: bool = True
    reason: str = ""
    message: str = ""
    heavy: bool = False


def toc_path(directory: Path, toc_digest: str) -> Path:
    """Where the TOC with that digest is kept: its JSON as it came, compressed."""
    return directory / f"{toc_digest.removeprefix('sha256:')}.json.zst"


def index_path(directory: Path, toc_digest: str, layer_digest: str, revision: int) -> Path:
    """Where the index of a TOC is kept.

    The layer is part of the name: offsets were checked against its blob, and another blob may carry the same TOC.
    """
    toc, layer = toc_digest.removeprefix("sha256:"), layer_digest.removeprefix("sha256:")
    return directory / f"{toc}-{layer[:16]}.{revision}.idx"
