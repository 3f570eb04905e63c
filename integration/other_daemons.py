"""The daemon as it is not shipped: another version, or with a fault planted. `python -m integration.other_daemons HOW serve …`

newer           says that it is a later version
crash-at WORD   ends by a fatal signal whenever somebody asks for a name that begins with WORD
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import snapshotter


def newer() -> None:
    snapshotter.__version__ = "99.0"


def crash_at(word: str) -> None:
    """In the middle of a request, where no handler can help: in the index on the fuse plane, behind the gate on the other."""
    from snapshotter.format.index import Index  # noqa: PLC0415 (not before the version is set)
    from snapshotter.layer.contents import Contents  # noqa: PLC0415

    def planted(kind: Any, name: str, asked: Callable[[Any], str]) -> None:
        real = getattr(kind, name)

        def crashing(self: Any, first: Any, second: Any) -> Any:
            if asked(second).startswith(word):
                os.abort()
            return real(self, first, second)

        setattr(kind, name, crashing)

    planted(Index, "lookup", os.fsdecode)
    planted(Contents, "size", str)


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if how == "newer":
        newer()
    else:
        crash_at(sys.argv.pop(1))
    from snapshotter.cli.main import main

    sys.exit(main())
