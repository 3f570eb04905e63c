from collections.abc import Callable

from snapshotter.api import control_pb2 as pb
from snapshotter.doctor import sharing
from snapshotter.doctor.examination import Once
from snapshotter.doctor.findings import Answer, Verdict
from snapshotter.errors import ContainerdUnreachable
from tests.doctor.world import MOUNTINFO, World, failing, look, the_one

DAEMON, CONTAINERD = 100, 200


def asked(world: World, name: str, pid: Callable[[], int | None] = lambda: CONTAINERD) -> Answer:
    world.voice.answer = pb.StatusResponse(pid=DAEMON, mountpoint=str(world.run_dir / "fuse"))
    return the_one(look(sharing.checks(world.subject(), Once(world.voice.status), pid), name))


def fuse_mount(world: World) -> str:
    return f"{MOUNTINFO}40 23 0:77 / {world.run_dir}/fuse ro - fuse.estargz estargz ro\n"


def test_one_mount_namespace_is_in_order(world: World) -> None:
    world.process(DAEMON)
    world.process(CONTAINERD)
    with world.listening():
        assert asked(world, "mounts seen").verdict is Verdict.OK


def test_another_namespace_without_our_mounts_is_a_fault(world: World) -> None:
    world.process(DAEMON, mountinfo=fuse_mount(world))
    world.process(CONTAINERD, namespace="mnt:[2]")
    with world.listening():
        answer = asked(world, "mounts seen")
    assert answer.verdict is Verdict.FAULT
    assert "PrivateMounts" in answer.advice


def test_another_namespace_into_which_our_mounts_go_on_is_in_order(world: World) -> None:
    world.process(DAEMON, mountinfo=fuse_mount(world))
    world.process(CONTAINERD, namespace="mnt:[2]", mountinfo=fuse_mount(world))
    with world.listening():
        assert asked(world, "mounts seen").verdict is Verdict.OK


def test_without_a_daemon_the_shell_stands_for_it(world: World) -> None:
    world.process(CONTAINERD)
    (world.proc / "self/ns").mkdir()
    (world.proc / "self/ns/mnt").symlink_to("mnt:[1]")
    assert asked(world, "mounts seen").verdict is Verdict.OK
    (world.proc / "self/ns/mnt").unlink()
    (world.proc / "self/ns/mnt").symlink_to("mnt:[9]")
    assert asked(world, "mounts seen").verdict is Verdict.NOTE


def test_without_containerd_nobody_is_compared(world: World) -> None:
    assert asked(world, "mounts seen", lambda: None).verdict is Verdict.SKIPPED
    assert asked(world, "mounts seen", failing(ContainerdUnreachable("no"))).verdict is Verdict.SKIPPED


def test_propagation_is_that_of_the_mount_below_the_run_directory(world: World) -> None:
    assert asked(world, "propagation").verdict is Verdict.OK
    world.write("proc/self/mountinfo", MOUNTINFO.replace(" shared:1", "").replace(" shared:2", " master:1"))
    answer = asked(world, "propagation")
    assert answer.verdict is Verdict.NOTE
    assert "private" in answer.found


def test_few_descriptors_are_a_warning(world: World) -> None:
    world.process(DAEMON, files="1024")
    with world.listening():
        answer = asked(world, "open files")
    assert answer.verdict is Verdict.WARNING
    assert "LimitNOFILE" in answer.advice


def test_many_or_unlimited_descriptors_are_in_order(world: World) -> None:
    with world.listening():
        for number, files in ((DAEMON, "1048576"), (DAEMON + 1, "unlimited")):
            world.process(number, files=files)
            subject = world.subject()
            world.voice.answer = pb.StatusResponse(pid=number)
            checks = sharing.checks(subject, Once(lambda: world.voice.answer), lambda: None)
            assert the_one(look(checks, "open files")).verdict is Verdict.OK
