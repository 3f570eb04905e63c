"""Containers on a connection that was lost are named until they are gone, also where another comes in their place."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from snapshotter.daemon.stranded import NAME, StrandedContainers
from snapshotter.service.control_views import UserView

ROOTFS = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/rootfs"


class Kernel:
    """A /proc with a table of mounts and the starts of processes."""

    def __init__(self, proc: Path, run_dir: Path) -> None:
        self.proc = proc
        self.run_dir = run_dir
        self._lines: dict[str, str] = {}
        (proc / "self").mkdir(parents=True)
        (run_dir / "l").mkdir(parents=True)
        (run_dir / "l" / "7").symlink_to("../fuse/1/layers/3")
        (run_dir / "l" / "8").symlink_to("/var/lib/estargz/snapshots/8/fs")
        (run_dir / "l" / "gate").symlink_to("../fuse/1/gate")
        self._write()

    def mount(self, name: str, device: str, lower: Iterable[str] = ("l/7",)) -> UserView:
        point = ROOTFS.format(name)
        lowerdir = ":".join(f"{self.run_dir}/{layer}" for layer in lower)
        self._lines[name] = f"50 1 {device} / {point} rw - overlay overlay rw,lowerdir={lowerdir},upperdir=/u"
        self._write()
        return UserView(name, "k8s.io", point, ())

    def unmount(self, name: str) -> None:
        del self._lines[name]
        self._write()

    def process(self, pid: int, start: int, name: str = "a) b (c") -> None:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        fields = " ".join(["S", "1", *["0"] * 17, str(start), "0"])
        (self.proc / str(pid) / "stat").write_text(f"{pid} ({name}) {fields}\n")

    def end(self, pid: int) -> None:
        (self.proc / str(pid) / "stat").unlink()

    def _write(self) -> None:
        (self.proc / "self" / "mountinfo").write_text("".join(f"{line}\n" for line in self._lines.values()))

    def load(self) -> StrandedContainers:
        """As a daemon that starts now."""
        return StrandedContainers(self.run_dir, self.proc)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "proc", tmp_path / "r")


def names(stranded: StrandedContainers) -> list[str]:
    return [str(one) for one in stranded.present()]


def running(kernel: Kernel, name: str, device: str, pid: int, lower: Iterable[str] = ("l/7",)) -> UserView:
    kernel.process(pid, 1000 + pid)
    view = kernel.mount(name, device, lower)
    return UserView(view.name, view.namespace, view.mountpoint, (pid,))


def test_those_that_stand_on_lazy_layers_are_named_until_they_are_gone(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    stranded = kernel.load()
    stranded.add([running(kernel, "a", "0:50", 5), running(kernel, "b", "0:51", 6)])
    assert names(stranded) == ["k8s.io/a", "k8s.io/b"]
    assert "start these containers again: k8s.io/a, k8s.io/b" in caplog.text
    kernel.unmount("a")
    kernel.end(5)
    assert names(stranded) == ["k8s.io/b"]
    # A later daemon knows too.
    assert names(kernel.load()) == ["k8s.io/b"]


def test_a_container_started_again_with_the_same_place_and_number_is_not_it(kernel: Kernel) -> None:
    stranded = kernel.load()
    stranded.add([running(kernel, "a", "0:50", 5)])
    kernel.end(5)
    kernel.unmount("a")
    running(kernel, "a", "0:50", 9)
    assert names(stranded) == []
    assert names(kernel.load()) == []
    # Not even where the process has the number of the one before.
    kernel.process(5, 7777)
    assert names(stranded) == []


def test_a_container_of_which_one_process_lives_is_still_it(kernel: Kernel) -> None:
    view = running(kernel, "a", "0:50", 5)
    kernel.process(6, 1006)
    stranded = kernel.load()
    stranded.add([UserView(view.name, view.namespace, view.mountpoint, (5, 6, 4_000_000))])
    kernel.end(5)
    assert names(stranded) == ["k8s.io/a"]


def test_a_mount_without_processes_goes_by_its_number(kernel: Kernel) -> None:
    stranded = kernel.load()
    stranded.add([kernel.mount("a", "0:50")])
    assert names(stranded) == ["k8s.io/a"]
    kernel.mount("a", "0:52")
    assert names(stranded) == []


def test_who_has_no_lazy_layer_is_not_concerned(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    stranded = kernel.load()
    stranded.add(
        [
            running(kernel, "ordinary", "0:50", 5, lower=("l/8",)),
            running(kernel, "elsewhere", "0:51", 6, lower=("x/7", "l/none")),
            running(kernel, "erofs", "0:52", 7, lower=("l/8", "e/12")),
            UserView("bind", "", "/mnt", (8,)),
        ]
    )
    assert names(stranded) == ["k8s.io/erofs"]
    assert "ordinary" not in caplog.text


def test_one_that_is_known_is_not_named_twice(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    view = running(kernel, "a", "0:50", 5)
    kernel.load().add([view])
    caplog.clear()
    again = kernel.load()
    again.add([view])
    assert names(again) == ["k8s.io/a"]
    assert caplog.text == ""


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"name": "x"}]', json.dumps([{"name": 1, "processes": [1]}])])
def test_a_file_that_cannot_be_read_names_nobody(kernel: Kernel, content: str) -> None:
    (kernel.run_dir / NAME).write_text(content)
    assert names(kernel.load()) == []


def test_where_the_run_directory_takes_no_file_they_are_named_all_the_same(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    (kernel.run_dir / f"{NAME}.tmp").mkdir()
    stranded = kernel.load()
    stranded.add([running(kernel, "a", "0:50", 5)])
    assert names(stranded) == ["k8s.io/a"]
    assert "cannot write" in caplog.text
