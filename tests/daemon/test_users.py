"""Finding who stands on our layers: on made-up tables, and on a real overlay in a mount namespace of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.daemon.users import ContainerName, Containers, find_users, stands_on
from snapshotter.plane.mounts import parse_mountinfo
from snapshotter.service.control_views import UserView

RUN, ROOT = Path("/run/e"), Path("/var/lib/with space")
ID = "ab" * 32
OURS = (
    "60 30 0:50 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/pod-1/rootfs rw,relatime shared:9 - overlay "
    "overlay rw,lowerdir=/run/e/l/5:/run/e/l/4,upperdir=/x/fs,workdir=/x/work"
)
INSIDE = OURS.replace("/run/containerd/io.containerd.runtime.v2.task/k8s.io/pod-1/rootfs", "/")
BY_UPPER = "61 30 0:51 / /m\\040t rw - overlay o rw,lowerdir=/elsewhere,upperdir=/var/lib/with\\040space/snapshots/3/fs"
FOREIGN = "62 30 0:52 / /var/lib/docker/merged rw - overlay o rw,lowerdir=/run/elsewhere/l/1:/run/e2/l/1,upperdir=/u"
FUSE = "63 30 0:60 / /run/e/fuse ro - fuse.estargz estargz ro,user_id=0"
FUSE_COPY = "64 30 0:60 / /host/run/e/fuse ro - fuse.estargz estargz ro,user_id=0"
LAYER_BIND = "65 30 0:60 /1/layers/3 /mnt/view ro - fuse.estargz estargz ro,user_id=0"


def process(proc: Path, pid: int, lines: list[str], namespace: str = "mnt:[1]", cgroup: str = "0::/x") -> None:
    (proc / str(pid) / "ns").mkdir(parents=True)
    os.symlink(namespace, proc / str(pid) / "ns" / "mnt")
    os.symlink("/", proc / str(pid) / "root")
    (proc / str(pid) / "mountinfo").write_text("\n".join(lines) + "\n")
    (proc / str(pid) / "cgroup").write_text(cgroup + "\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, 1, [FUSE, OURS, FOREIGN])
    os.symlink("1", tmp_path / "self")
    (tmp_path / "meminfo").write_text("")
    return tmp_path


def test_a_container_is_named_by_where_its_root_is_mounted_and_its_processes(proc: Path) -> None:
    for pid in (70, 71):
        process(proc, pid, [INSIDE], "mnt:[2]")
    (user,) = find_users(RUN, ROOT, proc)
    assert user == UserView(
        "pod-1", "k8s.io", "/run/containerd/io.containerd.runtime.v2.task/k8s.io/pod-1/rootfs", (70, 71)
    )


@pytest.mark.parametrize(
    "cgroup",
    [f"0::/system.slice/cri-containerd-{ID}.scope", f"12:pids:/kubepods/pod1/{ID}", f"0::/default/{ID}"],
)
def test_a_container_mounted_elsewhere_is_named_by_its_cgroup(proc: Path, cgroup: str) -> None:
    process(proc, 80, [BY_UPPER.replace("/m\\040t", "/")], "mnt:[3]", cgroup)
    names = {user.name for user in find_users(RUN, ROOT, proc)}
    assert names == {"pod-1", ID}


def test_a_mount_without_processes_is_named_by_its_place(proc: Path) -> None:
    process(proc, 81, [BY_UPPER], "mnt:[4]")
    assert UserView("/m t", "", "/m t", ()) in find_users(RUN, ROOT, proc)


def test_copies_of_our_mount_are_no_users_but_binds_of_a_layer_are(proc: Path) -> None:
    process(proc, 82, [FUSE_COPY, LAYER_BIND], "mnt:[5]")
    assert [user.mountpoint for user in find_users(RUN, ROOT, proc)][1:] == ["/mnt/view"]


def test_nothing_of_ours_is_nobody(tmp_path: Path) -> None:
    process(tmp_path, 1, [FUSE, FOREIGN])
    os.symlink("1", tmp_path / "self")
    assert find_users(RUN, ROOT, tmp_path) == ()


def test_processes_that_leave_meanwhile_and_odd_lines_are_passed_over(proc: Path) -> None:
    (proc / "90").mkdir()
    process(proc, 91, ["", "nonsense", "1 2 3 - x", "\\777 - a b c d"], "mnt:[6]")
    assert len(find_users(RUN, ROOT, proc)) == 1


def test_the_newer_spelling_of_lower_directories_is_known() -> None:
    for option in (b"lowerdir+=/run/e/l/1", b"datadir+=/var/lib/with\\040space/objects"):
        (line,) = parse_mountinfo(b"1 2 0:9 / /m rw - overlay o rw," + option)
        assert stands_on(line, (RUN, ROOT), None)


def test_a_process_in_a_real_overlay_on_our_directory_is_found(tmp_path: Path) -> None:
    """The overlay lives in a mount namespace of its own and goes with its process."""
    for name in ("run/l/1", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from snapshotter.plane.mounts import mount\n"
        f"top = Path({str(tmp_path)!r})\n"
        "mount('tmpfs', top / 'upper', 'tmpfs', 0, '')\n"
        "(top / 'upper/u').mkdir(); (top / 'upper/w').mkdir()\n"
        "options = f'lowerdir={top}/run/l/1,upperdir={top}/upper/u,workdir={top}/upper/w'\n"
        "mount('overlay', top / 'merged', 'overlay', 0, options)\n"
        "os.chroot(top / 'merged'); os.chdir('/')\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            (user,) = find_users(tmp_path / "run", tmp_path / "root")
        finally:
            child.stdin.close()
    assert user.pids == (child.pid,)
    assert find_users(tmp_path / "run", tmp_path / "root") == ()


def test_a_process_is_in_the_container_whose_root_is_its_own(proc: Path) -> None:
    process(proc, 70, [INSIDE], "mnt:[2]")
    process(proc, 71, [BY_UPPER.replace("/m\\040t", "/")], "mnt:[3]", f"0::/kubepods/{ID}")
    process(proc, 72, [FUSE], "mnt:[1]")
    containers = Containers(proc)
    assert [containers.of(pid) for pid in (70, 71, 72, 12345)] == [
        ContainerName("pod-1", "k8s.io"),
        ContainerName(ID),
        ContainerName(),
        ContainerName(),
    ]


def test_a_container_of_kubernetes_is_called_as_its_bundle_says(tmp_path: Path) -> None:
    bundle = tmp_path / "state/io.containerd.runtime.v2.task/k8s.io" / ID
    bundle.mkdir(parents=True)
    proc = tmp_path / "proc"
    process(proc, 1, [INSIDE.replace(" / / ", f" / {bundle}/rootfs ", 1)])
    os.symlink("1", proc / "self")
    process(proc, 70, [INSIDE], "mnt:[2]")
    keys = ("sandbox-namespace", "sandbox-name", "container-name")
    named = {f"io.kubernetes.cri.{key}": word for key, word in zip(keys, ("shop", "web-1", "nginx"), strict=True)}
    for written, in_pod in (
        (json.dumps({"annotations": named}), "shop/web-1/nginx"),
        (json.dumps({"annotations": {}}), ""),
        ("[]", ""),
        ("{", ""),
    ):
        (bundle / "config.json").write_text(written)
        assert Containers(proc).of(70) == ContainerName(ID, "k8s.io", in_pod)
