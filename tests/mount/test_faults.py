"""A layer that fails must cost nobody but its own readers."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from snapshotter.plane.fuse.protocol import CONGESTION_THRESHOLD, MAX_BACKGROUND
from tests.mount import torture
from tests.mount.conftest import PATIENCE_S, Served, child, run, start_child

STUCK = 200
ERRNO = """
try:
    open(sys.argv[1], "rb").read()
except OSError as error:
    print(json.dumps(error.errno))
"""
READ_ALL = """
import threading
def read(name):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        file.read()
threads = [threading.Thread(target=read, args=(f"stuck-{i:03}",)) for i in range(int(sys.argv[2]))]
[thread.start() for thread in threads]
print("reading", flush=True)
[thread.join() for thread in threads]
"""


@contextmanager
def stuck_readers(server: Served, count: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process with `count` readers of a layer whose registry never answers; killed at the end."""
    process = start_child(READ_ALL, server.layer(torture.BROKEN), str(count))
    try:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + PATIENCE_S
        while (stuck := server.command("stuck")) < count:
            assert process.poll() is None
            assert time.monotonic() < deadline, f"only {stuck} of {count} reads reached the server"
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("name", ["bug", "outage", "too-long"])
def test_failed_read_is_eio_and_the_mount_lives(served: Served, name: str) -> None:
    assert child(ERRNO, served.layer(torture.BROKEN) / name) == errno.EIO
    assert child("print(json.dumps(open(sys.argv[1]).read()))", served.layer(torture.TORTURE) / "dir/file") == "hello\n"


def test_200_stuck_readers_do_not_stop_another_layer(own_server: Served) -> None:
    with stuck_readers(own_server, STUCK):
        code = "print(json.dumps(len(open(sys.argv[1], 'rb').read())))"
        assert child(code, own_server.layer(torture.TORTURE) / "big") == len(torture.BIG)
        assert own_server.command("stuck") == STUCK


def test_a_reader_that_waits_can_be_killed(own_server: Served) -> None:
    with stuck_readers(own_server, 1) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert child("print(json.dumps(len(os.listdir(sys.argv[1]))))", own_server.layer(torture.TORTURE) / "many") == 2000


def test_the_kernel_took_our_limits(served: Served) -> None:
    """Read from fusectl, mounted in a mount namespace of the reader's own."""
    connection = served.device.split(":")[1]
    script = (
        "mount -t fusectl none /sys/fs/fuse/connections && cd /sys/fs/fuse/connections/$1 && "
        "cat max_background congestion_threshold && cat /sys/class/bdi/$2/read_ahead_kb"
    )
    shown = run("unshare", "--mount", "sh", "-c", script, "sh", connection, served.device).split()
    assert shown == [str(MAX_BACKGROUND), str(CONGESTION_THRESHOLD), "1024"]


def test_no_descriptor_of_the_connection_is_inherited(served: Served) -> None:
    folder = f"/proc/{served.process.pid}/fd"
    for name in os.listdir(folder):
        if os.readlink(f"{folder}/{name}") == "/dev/fuse":
            with open(f"/proc/{served.process.pid}/fdinfo/{name}") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags"))
            assert flags & os.O_CLOEXEC
