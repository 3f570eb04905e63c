"""The file of --record-out: opened before anything runs, written as soon as something is known, and again when more is."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from stat import S_ISREG

from snapshotter.errors import ConfigError
from snapshotter.image.convert.conversion import Conversion
from snapshotter.image.optimize.record_file import Recorded, format_record
from snapshotter.image.optimize.running import Sampled
from snapshotter.image.places.disk import disk_errors

Write = Callable[[Iterable[Recorded]], None]


@contextmanager
def record_out(path: Path | None) -> Iterator[Write]:
    """Yield what writes the record to `path`, where there is one; what is written last counts.

    A file that was made for it and never written is removed.

    Raises:
        ConfigError: nothing can be written there.
        StoreError: it could be opened, and does not take it all.
    """
    if path is None:
        yield lambda _records: None
        return
    file, new = _opened(path)
    latest: list[bytes] = []
    # A pipe's reader gets one record, at the end.
    again = S_ISREG(os.fstat(file.fileno()).st_mode)

    def write(records: Iterable[Recorded]) -> None:
        latest[:] = [format_record(records)]
        if again:
            with disk_errors(path):
                file.seek(0)
                _write(file, latest[0])
                file.truncate()

    with file:
        try:
            yield write
        finally:
            with disk_errors(path):
                if latest and not again:
                    _write(file, latest[0])
                elif new and not latest:
                    path.unlink(missing_ok=True)


def records_of(sampled: Sampled, conversion: Conversion | None = None) -> list[Recorded]:
    """What was read, under the digest of the image that ran; if that was converted, what is in a layer, with its number."""
    records = [Recorded(name, sampled.manifest_digest) for name in sampled.paths]
    for image in conversion.images if conversion is not None else ():
        if image.source_digest == sampled.manifest_digest:
            layers = {name: number for number, names in enumerate(image.front) for name in names}
            records = [replace(one, layer_index=layers[one.path]) for one in records if one.path in layers]
    return records


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _opened(path: Path) -> tuple[FileIO, bool]:
    """The file, its content as it was, and whether it is new."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        try:
            return FileIO(os.open(path, flags | os.O_EXCL, 0o666), "wb"), True
        except FileExistsError:
            return FileIO(os.open(path, flags, 0o666), "wb"), False
    except OSError as fault:
        raise ConfigError(
            f"--record-out {path}: {fault.strerror}; name a file in a directory that is there, and that you may write to"
        ) from None
