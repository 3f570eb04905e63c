"""Where errors of the file system get names."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter.errors import NotFound, StoreError, StoreFull


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Map what the file system says of `path` to our errors.

    Raises:
        NotFound: it does not exist.
        StoreFull: no room.
        StoreError: anything else.
    """
    try:
        yield
    except FileNotFoundError as fault:
        raise NotFound(f"{fault.filename or path} does not exist") from fault
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"no room left at {fault.filename or path}; free some, or use another directory") from fault
        raise StoreError(f"{fault.filename or path}: {fault.strerror or fault}") from fault
