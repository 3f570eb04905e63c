"""What readers of a daemon that takes over wait for."""

import subprocess
import sys


def test_what_the_kernel_does_not_need_is_loaded_after_it_is_answered() -> None:
    heavy = (
        "grpc",
        "httpx",
        "httpcore",
        "google.protobuf",
        "prometheus_client",
        "rich",
        "snapshotter.format.index_build",
    )
    program = (
        f"import sys, snapshotter.cli.serve, snapshotter.daemon.main; print([n for n in {heavy!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
