"""A directory that is none of the daemon's, to which somebody planted links; and whether it is still what it was."""

import os
import stat
from pathlib import Path

# What each part of the daemon would find worth tidying, renaming or filling.
TEMPTING = (
    "1/fs/file", "7/fs/file", "gone-1/file", "node/ab/file", "node/0.tmp", "section-left", ".5.1234", "x.json", "x.erofs",
    "_abcdefghij234/node/ab/file", "empty/file", "file",
)  # fmt: skip


class Outside:
    """Files that tempt, in a directory called `outside`; and a file beside them."""

    def __init__(self, top: Path) -> None:
        self.directory = top / "outside"
        self.missing = top / "not-there"
        """Where a link may lead so that following it makes a file."""
        for name in TEMPTING:
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        self.file = self.directory / "file"
        for parent, names, _ in os.walk(self.directory):
            for name in names:
                Path(parent, name).chmod(0o751)
        self.directory.chmod(0o751)
        self._before = self._look()

    def check(self) -> None:
        """Nothing was added, taken away or changed, modes and times included; and nothing was made where nothing was."""
        assert self._look() == self._before
        assert not os.path.lexists(self.missing)

    def _look(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for parent, folders, files in os.walk(self.directory):
            for path in (Path(parent), *(Path(parent, name) for name in (*folders, *files))):
                status = path.lstat()
                content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
                found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ino, content)
        return found
