"""The worker process that turns a TOC section into the files that the daemon maps, and an index into an EROFS image.

Decoding the JSON of a large TOC holds the GIL for longer than a FUSE request may wait, so the daemon never does it:
it starts this module with an interpreter of its own and talks JSON lines over its standard streams.

A job names the file with the compressed TOC section as it came from the blob, the trust anchors and where the results
go. The worker inflates, verifies, checks and writes; it answers with a summary, or with a reason and a sentence.
"""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from snapshotter.errors import FormatError, NotLazy, Reason, SnapshotterError
from snapshotter.format.digest import digest_of, parse_digest
from snapshotter.format.erofs import write_image
from snapshotter.format.footer import Codec, Flavor, Footer, toc_json
from snapshotter.format.index import INDEX_REVISION, BuildOptions, Index
from snapshotter.format.index_build import build_index
from snapshotter.format.limits import TOC_RAW
from snapshotter.format.members import inflate
from snapshotter.format.zstd import zstd
from snapshotter.layer.toc_jobs import Done, ImageJob, Job, index_path, toc_path
from snapshotter.store.identity import ContentPaths

HEAVY_JSON = 8 << 20
"""After a TOC larger than this (bytes of JSON) the worker ends, and gives its memory back."""

HEAVY_NODES = 20_000
"""After the image of a layer with more nodes likewise."""

FIRST_TO_GO = "1000"
"""oom_score_adj of a worker: its largest value (proc(5))."""

MEMORY_MAX = 8 << 30
"""Address space of a worker. A TOC of a million entries takes 1.4 GB; the limit of `format.limits` is four million."""


def run_job(job: Job) -> Done:
    """Do one job; both files are in place, durably, when it returns. Raises SnapshotterError, OSError."""
    plain = _plain_json(job)
    toc_digest = digest_of(plain)
    if job.toc_digest is not None and toc_digest != job.toc_digest:
        raise NotLazy(
            Reason.TOC_MISMATCH,
            f"the TOC of layer {job.layer_digest} has digest {toc_digest}, its image promises {job.toc_digest}: "
            "the image is damaged or was tampered with; convert and push it again",
        )
    options = BuildOptions(
        codec=Codec(job.codec),
        blob_size=job.blob_size,
        payload_end=job.payload_end,
        layer_digest=parse_digest(job.layer_digest),
        allow_unverified=job.allow_unverified,
    )
    built = build_index(plain, options)
    if job.flavor:
        kept = toc_path(Path(job.toc_directory), toc_digest)
        _publish(kept, zstd.compress(plain, level=3))
    path = index_path(Path(job.index_directory), toc_digest, job.layer_digest, INDEX_REVISION)
    _publish(path, built)
    verified = Index(built, str(path)).verified
    return Done(toc_digest=toc_digest, verified=verified, heavy=len(plain) > HEAVY_JSON)


def run_image_job(job: ImageJob) -> Done:
    """Write the image of an index; a power loss may tear it, which its hash shows. Raises SnapshotterError, OSError."""
    index = Index.open(job.index)
    try:
        paths = ContentPaths(job.place, job.domain)
        image = write_image(index, paths.directory, paths.large)
        _publish(Path(job.image), image, durable=False)
        return Done(heavy=index.node_count > HEAVY_NODES)
    finally:
        index.close()


def _plain_json(job: Job) -> bytes:
    section = Path(job.section).read_bytes()
    if not job.flavor:
        return inflate(Codec.ZSTD, section, TOC_RAW)
    if job.section_digest is not None and digest_of(section) != job.section_digest:
        raise NotLazy(
            Reason.TOC_MISMATCH,
            f"the compressed TOC of layer {job.layer_digest} does not have the checksum {job.section_digest} "
            "that its manifest promises: the image is damaged or was tampered with; push it again",
        )
    footer = Footer(
        flavor=Flavor(job.flavor),
        codec=Codec(job.codec),
        toc_offset=job.toc_offset,
        toc_end=job.toc_end,
        toc_raw_size=job.toc_raw_size,
        payload_end=job.payload_end,
    )
    return toc_json(footer, section)


def _publish(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that its name stands for whole and, where wanted, durable content."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    if not durable:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def answer(line: bytes) -> Done:
    """The answer to one line from the daemon; whatever goes wrong becomes a reason and a sentence."""
    try:
        job = msgspec.json.decode(line, type=Job | ImageJob)
        return run_job(job) if isinstance(job, Job) else run_image_job(job)
    except NotLazy as error:
        return Done(reason=error.reason, message=str(error))
    except FormatError as error:
        return Done(reason=Reason.TOC_INVALID, message=str(error))
    except SnapshotterError as error:
        return Done(reason=Reason.INTERNAL, message=str(error))
    except FileNotFoundError as error:
        return Done(reason=Reason.DISK, message=f"a file that was kept for it is gone: {error.filename}")
    except OSError as error:
        return Done(reason=Reason.DISK, message=f"writing its index or image failed: {error}")
    except MemoryError:
        return Done(reason=Reason.LIMIT, message="the TOC needs more memory than the node gives", heavy=True)


def main() -> None:
    """Answer jobs, a line each, until the daemon closes the stream; a worker that grew large ends by itself."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    with suppress(OSError):
        # A TOC may be made to take all memory: where that is little, this process is to go and not the daemon or a container.
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)
    while line := sys.stdin.buffer.readline():
        done = answer(line)
        try:
            os.write(sys.stdout.fileno(), msgspec.json.encode(done) + b"\n")
        except BrokenPipeError:
            # The daemon was killed meanwhile; the files are in place for the next one.
            break
        if done.heavy:
            break


if __name__ == "__main__":
    main()
