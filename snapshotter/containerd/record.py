"""What `--write` changed, kept beside containerd's main file, so that `--revert` takes out that and nothing else."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapshotter.containerd import files
from snapshotter.containerd.editing import Edit, Key
from snapshotter.errors import ConfigError

NAME = "estargz-snapshotter.json"
"""Not `.toml`: no pattern of imports takes it."""

BACKUP = ".before-estargz-snapshotter"

REVISION = 1


@dataclass(frozen=True, slots=True)
class Written:
    """One file: `edits` made it what it became, of which `sha256` is the digest.

    `backup` holds the file as it was before, None if there was none.
    """

    path: Path
    sha256: str
    edits: tuple[Edit, ...]
    backup: Path | None

    def is_untouched(self, data: bytes) -> bool:
        """Whether `data` is what `--write` left."""
        return digest(data) == self.sha256


@dataclass(frozen=True, slots=True)
class Record:
    """The files in the order in which they were written, and the directories that were made for them."""

    files: tuple[Written, ...] = ()
    directories: tuple[Path, ...] = ()


def digest(data: bytes) -> str:
    """The digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def path_beside(main: Path) -> Path:
    """Where the record is."""
    return main.parent / NAME


def load(main: Path) -> Record:
    """What was written for `main`; nothing if there is no record.

    Raises:
        ConfigError: it cannot be read.
    """
    path = path_beside(main)
    data = files.read(path)
    if data is None:
        return Record()
    try:
        stored = json.loads(data)
        if stored["revision"] != REVISION:
            raise ConfigError(f"{path} was written by another version of this program: use that one to revert")
        return Record(tuple(map(_written, stored["files"])), tuple(map(Path, stored["directories"])))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}): put the files back by hand (their backups end in {BACKUP}) "
            "and delete it"
        ) from None


def dump(record: Record) -> bytes:
    """The bytes that `load` reads."""
    stored = {"revision": REVISION, **asdict(record)}
    return (json.dumps(stored, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def _written(stored: Mapping[str, Any]) -> Written:
    edits = tuple(
        Edit(tuple(Key(tuple(key["path"]), key["after"], key["before"]) for key in edit["keys"]), edit["text"])
        for edit in stored["edits"]
    )
    backup = Path(stored["backup"]) if stored["backup"] else None
    return Written(Path(stored["path"]), stored["sha256"], edits, backup)
