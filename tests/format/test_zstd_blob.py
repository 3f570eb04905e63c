"""zstd:chunked blobs: frames, what follows them, what annotations say, and that both dialects mean the same."""

import struct

from snapshotter.format.codec import Codec
from snapshotter.format.digest import digest_of
from snapshotter.format.footer import Flavor, footer_from_annotations, toc_anchor
from snapshotter.format.writer.options import WriterOptions
from snapshotter.format.writer.write import TOC_DIGEST, for_containers_storage
from snapshotter.format.zstd import zstd
from tests.format.tars import entry, folder, tar
from tests.format.written import written

CHUNKED = WriterOptions(chunk_size=4096, compression=Codec.ZSTD)
STORAGE = "io.github.containers.zstd-chunked."
STARGZ = "io.containers.zstd-chunked."
SOURCE = tar(folder("d"), entry("d/a", b"1" * 9000), entry("empty"), entry("d/b", b"2"))


def frames(blob: bytes) -> list[tuple[int, bool]]:
    """Where each frame begins, and whether a decoder skips it."""
    found, at = [], 0
    while at < len(blob):
        skipped = blob[at : at + 4] == b"\x50\x2a\x4d\x18"
        found.append((at, skipped))
        at += 8 + struct.unpack_from("<L", blob, at + 4)[0] if skipped else zstd.get_frame_size(blob[at:])
    return found


def test_frames_begin_where_contents_and_chunks_begin_and_three_are_skipped() -> None:
    found = written(SOURCE, CHUNKED)
    offsets = [row["offset"] for row in found.rows if "offset" in row]
    # The first header, the landmark, three chunks of a, b; then TOC, tar-split and footer.
    assert [at for at, skipped in frames(found.blob) if not skipped] == [0, *offsets]
    assert [skipped for _, skipped in frames(found.blob)][-4:] == [False, True, True, True]
    assert len(found.blob) - frames(found.blob)[-1][0] == 48


def test_footer_of_stargz_snapshotter_and_both_sets_of_annotations_name_the_same_toc() -> None:
    found = written(SOURCE, CHUNKED)
    footer = found.footer
    assert footer.flavor is Flavor.ZSTD_CHUNKED
    assert footer_from_annotations(found.layer.annotations, len(found.blob)) == footer
    toc = found.blob[footer.toc_offset : footer.toc_end]
    assert toc_anchor(found.layer.annotations) == digest_of(toc)
    for key in ("manifest-checksum", "manifest-position"):
        assert found.layer.annotations[STORAGE + key] == found.layer.annotations[STARGZ + key]
    assert found.blob[-8:] == b"GnUlInUx"


def test_containers_storage_is_told_everything_but_the_digest_that_it_takes_for_another_format() -> None:
    told = for_containers_storage(written(SOURCE, CHUNKED).layer.annotations)
    assert TOC_DIGEST not in told
    assert {STORAGE + key for key in ("manifest-checksum", "manifest-position", "tarsplit-position")} <= told.keys()


def test_rows_say_where_members_end_and_how_large_each_chunk_of_several_is() -> None:
    found = written(SOURCE, CHUNKED)
    by_name = [row for row in found.rows if row["name"] == "d/a"]
    starts = [row["offset"] for row in found.rows if "offset" in row]
    ends = [*starts[1:], found.footer.payload_end]
    assert [row["chunkSize"] for row in by_name] == [4096, 4096, 808]
    first = starts.index(by_name[0]["offset"])
    # The first row speaks of the whole file.
    assert [row["endOffset"] for row in by_name] == [ends[first + 2], ends[first + 1], ends[first + 2]]


def test_toc_and_tar_split_are_no_part_of_the_layer_that_is_unpacked() -> None:
    found = written(SOURCE, CHUNKED)
    assert b"stargz.index.json" not in found.plain
    assert found.layer.plain_size == len(found.plain)
