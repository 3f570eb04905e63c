"""Image manifests and indexes that were sound, with changed values and bytes."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.format.footer import footer_from_annotations, toc_anchor
from snapshotter.registry.manifest import (
    ACCEPTED,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageIndex,
    choose_platform,
    parse_manifest,
)
from snapshotter.registry.platform import host_platform
from snapshotter.registry.reference import checked_digest
from tests.fuzz.corpus import BUILT
from tests.fuzz.mutations import Corpus, mutated, mutated_json
from tests.fuzz.rounds import bounded, fuzzed

HERE = host_platform("x86_64")


def _described(media_type: str, digest: str, size: int, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size, **more}


MANIFEST = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": _described("application/vnd.oci.image.config.v1+json", "sha256:" + "1" * 64, 100),
    "layers": [
        _described(built.media_type, built.digest, built.size, annotations=built.annotations) for built in BUILT
    ],
    "annotations": {"a": "b"},
}
INDEX = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "manifests": [
        _described(OCI_MANIFEST, "sha256:" + digit * 64, 500, platform={"os": "linux", "architecture": machine})
        for digit, machine in (("2", "amd64"), ("3", "arm64"))
    ],
}
DOCUMENTS: Corpus[Any] = Corpus([MANIFEST, INDEX])


@fuzzed(50)
@given(
    mutated_json(DOCUMENTS) | mutated(Corpus(json.dumps(one).encode() for one in DOCUMENTS)),
    st.sampled_from((None, *ACCEPTED, "x")),
)
def test_changed_manifest_has_checked_values_or_is_format_error(raw: bytes, media_type: str | None) -> None:
    with bounded(16 << 20):
        try:
            read = parse_manifest(raw, media_type)
            if isinstance(read, ImageIndex):
                choose_platform(read, HERE)
        except FormatError:
            return
    for one in read.manifests if isinstance(read, ImageIndex) else (read.config, *read.layers):
        assert checked_digest(one.digest) == one.digest
        assert 0 <= one.size < 1 << 63
        assert one.media_type.isprintable()
        try:
            footer = footer_from_annotations(one.annotations, one.size)
            toc_anchor(one.annotations)
        except FormatError:
            continue
        assert footer is None or 0 <= footer.toc_offset < footer.toc_end <= one.size
