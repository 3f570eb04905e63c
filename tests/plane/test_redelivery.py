"""What a dead daemon had read comes back or is asked again, and only the convicted are refused: on a real mount."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snapshotter.plane.fuse.in_hand import Request, argument_of
from snapshotter.plane.fuse.protocol import OP_GETXATTR
from snapshotter.plane.fuse.redelivery import refuse, resend, sweep
from tests.doubles.raw_fuse import EIO, RESENT, Raw, RawMount, raw_mount, said

ROOT = 1


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[RawMount]:
    with raw_mount(tmp_path / "mnt") as made:
        yield made


@pytest.fixture
def resending(mount: RawMount) -> RawMount:
    if not resend(mount.fd):
        pytest.skip("this kernel does not send requests again (Linux 6.9)")
    return mount


def request(name: str) -> Request:
    return Request(OP_GETXATTR, ROOT, argument_of(OP_GETXATTR, name.encode()))


def read(mount: RawMount, count: int) -> dict[str, Raw]:
    """So many requests, by name."""
    return {one.name: one for one in (mount.read() for _ in range(count))}


def test_what_was_read_and_not_answered_comes_again_with_a_mark(resending: RawMount) -> None:
    child = resending.ask("trusted.a")
    first = resending.read()
    assert resending.asks_nothing()
    assert resend(resending.fd)
    again = resending.read()
    assert (again.name, again.unique) == ("trusted.a", first.unique | RESENT)
    resending.give(again.unique, "value")
    assert said(child) == "value"


def test_the_convicted_are_refused_and_all_others_wait_on(resending: RawMount) -> None:
    children = {name: resending.ask(name) for name in ("trusted.a", "trusted.b")}
    read(resending, 2)
    # Not read by the daemon that died: it waits in the queue.
    children["trusted.c"] = resending.ask("trusted.c")
    assert refuse(resending.fd, {request("trusted.b"), request("trusted.never")}) == 1
    assert said(children["trusted.b"]) == EIO
    for raw in read(resending, 2).values():
        resending.give(raw.unique, f"of {raw.name}")
    assert {said(children[name]) for name in ("trusted.a", "trusted.c")} == {"of trusted.a", "of trusted.c"}


def test_one_request_of_two_processes_is_refused_for_both(resending: RawMount) -> None:
    children = [resending.ask("trusted.a") for _ in range(2)]
    for _ in range(2):
        resending.read()
    assert refuse(resending.fd, {request("trusted.a")}) == 2
    assert [said(child) for child in children] == [EIO, EIO]


def test_without_convicts_nobody_is_refused(resending: RawMount) -> None:
    child = resending.ask("trusted.a")
    resending.read()
    assert refuse(resending.fd, set()) == 0
    resending.give(resending.read().unique, "value")
    assert said(child) == "value"


def test_after_a_sweep_who_waited_asks_again(mount: RawMount) -> None:
    children = {name: mount.ask(name) for name in ("trusted.a", "trusted.b")}
    old = {raw.unique for raw in read(mount, 2).values()}
    swept = sweep(mount.fd, mount.connection.mount_point / "fresh")
    assert swept is not None
    try:
        assert swept.told == 2
        assert swept.read is None
        assert swept.child
        asked = set[str]()
        while asked != set(children):
            raw = mount.read()
            if raw.opcode == OP_GETXATTR:
                assert raw.unique not in old
                asked.add(raw.name)
                mount.give(raw.unique, f"of {raw.name}")
            else:
                mount.fail(raw.unique, errno.ENOENT)
        assert [said(child) for child in children.values()] == ["of trusted.a", "of trusted.b"]
    finally:
        # It waits for an answer to its lookup, or has it.
        mount.end()
        with suppress(ProcessLookupError):
            os.kill(swept.child, signal.SIGKILL)
        os.waitpid(swept.child, 0)


def test_a_sweep_takes_a_request_that_waits_for_the_newest_and_starts_no_process(mount: RawMount) -> None:
    first = mount.ask("trusted.a")
    mount.read()
    second = mount.ask("trusted.b")
    mount.await_request()
    swept = sweep(mount.fd, mount.connection.mount_point / "fresh")
    assert swept is not None
    assert (swept.told, swept.read, swept.child) == (1, None, 0)
    for raw in read(mount, 2).values():
        mount.give(raw.unique, f"of {raw.name}")
    assert [said(first), said(second)] == ["of trusted.a", "of trusted.b"]


def test_a_kernel_that_does_not_know_the_message_is_told_apart_from_one_that_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(number: int) -> bool:
        def write(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            return resend(-1)

    assert not failing(errno.EINVAL)
    with pytest.raises(OSError, match="Transport"):
        failing(errno.ENOTCONN)
