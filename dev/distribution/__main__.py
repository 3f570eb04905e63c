"""`python -m dev.distribution stage` builds the release below build/dist and prints its folder; `archive` packs it too."""

import argparse
from pathlib import Path

from dev.distribution.archive import write_archive
from dev.distribution.build import TOP, build_release


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dev.distribution", description=__doc__)
    parser.add_argument("what", choices=("stage", "archive"))
    parser.add_argument("--python", default="python3", help="the interpreter that the release carries")
    parser.add_argument("--build", type=Path, default=TOP / "build" / "dist", help="where it is put together")
    parser.add_argument("--archives", type=Path, default=TOP / "dist", help="where the tarball is written")
    options = parser.parse_args()
    release = build_release(options.python, options.build, options.build)
    if options.what == "stage":
        print(release.folder)
        return
    archive = write_archive(release, options.archives)
    print(f"{archive} ({archive.stat().st_size >> 20} MiB), SHA256SUMS beside it")


main()
