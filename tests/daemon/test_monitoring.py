"""The daemon as a process with metrics on, off, and where they cannot be had."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.test_main import START_S, Instance, end, instance
from tests.doubles.closed_port import ClosedPort

__all__ = ["instance"]

LISTEN = "0A"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else takes; whoever names it may listen at it."""
    with ClosedPort() as held:
        yield held.port


def configured(instance: Instance, address: str) -> tuple[str, str]:
    path = instance.top / "config.toml"
    path.write_text(f'[metrics]\naddress = "{address}"\n')
    return "--config", str(path)


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=START_S) as answer:
        return str(answer.read().decode())


def listeners(pid: int) -> list[str]:
    """TCP addresses at which a process listens. Source: proc(5), /proc/net/tcp: local address, state, inode."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTEN and f"socket:[{rest[5]}]" in inodes:
                found.append(local)
    return found


def test_metrics_are_there_from_ready_on_and_end_with_the_daemon(instance: Instance, port: int) -> None:
    process = instance.start(*configured(instance, f"127.0.0.1:{port}"))
    assert len(listeners(process.pid)) == 1
    text = get(port)
    assert "estargz_session 1.0" in text
    assert "estargz_problems 0.0" in text
    assert (
        f'estargz_plane_info{{plane="{json.loads(instance.command("status", "--json").stdout)["plane"]}"}} 1.0' in text
    )
    assert 'estargz_rpc_duration_seconds_count{code="OK",method="Control/Status"} 1.0' in get(port)
    code, messages = end(process, signal.SIGTERM)
    assert (code, messages[-1]) == (0, "stopped; mounts stay in place")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_without_an_address_nothing_listens_and_nothing_is_imported(instance: Instance) -> None:
    process = instance.start()
    assert listeners(process.pid) == []
    end(process, signal.SIGTERM)
    code = (
        "import sys\n"
        "from snapshotter.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted(name for name in sys.modules if name.startswith(('prometheus', 'snapshotter.metrics'))))\n"
    )
    command = [sys.executable, "-c", code, "serve", "--root", str(instance.top / "root")]
    command += ["--run-dir", str(instance.top / "r")]
    environment = os.environ | {"NOTIFY_SOCKET": instance.manager.address}
    again = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    instance.running.append(again)
    instance.await_ready(again)
    again.send_signal(signal.SIGTERM)
    out, _ = again.communicate(timeout=START_S)
    assert out.splitlines()[-1] == "[]"


def test_an_address_that_is_taken_keeps_the_daemon_from_nothing_but_metrics(instance: Instance) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = instance.start(*configured(instance, f"127.0.0.1:{port}"))
        (problem,) = json.loads(instance.command("status", "--json").stdout)["problems"]
        assert problem.startswith(
            f"no metrics: metrics.address 127.0.0.1:{port} cannot be listened at: Address already in use"
        )
        code, messages = end(process, signal.SIGTERM)
    assert code == 0
    assert any(message.startswith("running without metrics") for message in messages)


def test_hanging_scrapers_keep_the_daemon_from_nothing(instance: Instance, port: int) -> None:
    process = instance.start(*configured(instance, f"127.0.0.1:{port}"))
    hanging = [socket.create_connection(("127.0.0.1", port), timeout=START_S) for _ in range(40)]
    try:
        assert "estargz_session" in get(port)
        assert instance.command("status").returncode == 0
        assert end(process, signal.SIGTERM)[0] == 0
    finally:
        for client in hanging:
            client.close()
