"""The tarball of a release, the same bytes for the same files, and its checksum."""

import gzip
import hashlib
import os
import tarfile
from pathlib import Path

from dev.distribution.release import Release


def write_archive(release: Release, place: Path) -> Path:
    """Write `<release>.tar.gz` and SHA256SUMS into `place` and return the archive's path."""
    place.mkdir(exist_ok=True)
    archive = place / f"{release.folder.name}.tar.gz"
    aside = archive.with_suffix(".tmp")
    with (
        aside.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=release.epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in [release.folder, *sorted(release.folder.rglob("*"))]:
            name = path.relative_to(release.folder.parent)
            entry = tar.gettarinfo(path, str(name))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime = release.epoch
            if entry.isreg():
                with path.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)
    os.replace(aside, archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (place / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n")
    return archive
