"""How a sample run looks: sentences on standard error, and what the JSON says of it."""

import sys
from typing import Any

from snapshotter.cli.printing import printable
from snapshotter.image.convert.conversion import Conversion
from snapshotter.image.convert.prefetch import literal
from snapshotter.image.optimize.running import Sampled
from snapshotter.image.optimize.sampling import Ending


def note(sentence: str) -> None:
    """Say something to whoever waits."""
    # Not click's echo, which writes past what puts words above bars.
    sys.stderr.write(f"snapshotter: {printable(sentence)}\n")


def tell_end(sampled: Sampled, line: str) -> None:
    """Say how a run ended; `line` is the text that was waited for, if any."""
    sample = sampled.sample
    note(f"watched for {sample.seconds:.1f} s, until {sample.ending.value}")
    if line and sample.ending in (Ending.EXIT, Ending.PERIOD):
        note(f"no line of its output had {line!r} in it")
    if sample.ending is Ending.EXIT and sample.exit_status != 0:
        note(
            f"the program ended with exit code {sample.exit_status}; what it read until then is used. If it should have "
            "gone on, see what it said, and give it what it needs (--args, --env, --mount, --net-host)"
        )
    if sample.lost:
        note(
            f"{sample.lost} accesses or more could not be noted, so files may be missing: run this again on an idler machine"
        )


def tell_files(conversion: Conversion, sampled: Sampled) -> None:
    """Say how many files of the image were read, and what they are to the images that did not run."""
    read = set(map(literal, sampled.paths))
    of_image = ""
    for image in conversion.images:
        if image.source_digest == sampled.manifest_digest:
            # What the program itself wrote it may have read, too.
            read -= set(image.missing)
            of_image = " of the image"
    note(f"{len(read)} files{of_image} were read in {sampled.sample.seconds:.1f} s")
    for image in conversion.images:
        if image.source_digest != sampled.manifest_digest:
            known = len(read - set(image.missing))
            note(
                f"for {image.platform} nothing was run; of the {len(read)} files that were read it has "
                + (f"{known}, which are in front" if known else "none, so nothing is in front")
            )


def sample_json(sampled: Sampled | None) -> dict[str, Any] | None:
    """A run for programs; None where nothing was run."""
    if sampled is None:
        return None
    sample = sampled.sample
    return {
        "manifest_digest": sampled.manifest_digest,
        "files": list(map(printable, sampled.paths)),
        "seconds": round(sample.seconds, 3),
        "ended_by": sample.ending.name.lower(),
        "exit_status": sample.exit_status,
        "lost": sample.lost,
    }
