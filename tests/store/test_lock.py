import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import StoreError, StoreLocked
from snapshotter.store.lock import RootLock

HOLDER = """
import sys
from pathlib import Path
from snapshotter.store.lock import RootLock
with RootLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_holder_is_told_who_and_where(tmp_path: Path) -> None:
    with RootLock(tmp_path), pytest.raises(StoreLocked, match=f"{tmp_path}.*{os.getpid()}"):
        RootLock(tmp_path)


def test_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = RootLock(tmp_path / "new" / "root")
    lock.release()
    lock.release()
    with RootLock(tmp_path / "new" / "root"):
        pass


def test_lock_of_another_process_ends_with_it_even_if_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StoreLocked, match=str(holder.pid)):
                RootLock(tmp_path)
        finally:
            holder.kill()
    with RootLock(tmp_path):
        pass


def test_root_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="root directory"):
        RootLock(tmp_path / "file" / "root")
