"""What an image or a container may try in order to steer the overlay, or to change what others read."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import ALONE, StartNode
from integration.fidelity import differences, report
from integration.harness.cri import Container
from integration.harness.node import Node, node
from integration.harness.registry import Registry
from integration.images.dialects import push_built
from integration.images.trial import PROBE, content, expected, large, probe_program, programs
from tests.doubles.layers import BuiltLayer, char, dir, file, layer, sha256

SLEEP = ("/bin/busybox", "sleep", "1000")
TRUTH = b"what an honest image has\n"
SECRET = b"what only the lower layer may show\n"
# Each has a file of its own. What one may do in its own root is done there, to a copy.
ATTACKS = (
    "write", "append", "truncate", "trunc-open", "punch", "chattr", "map-write", "map-protect", "map-files", "proc-mem",
    "proc-fd", "proc-path-fd", "write-read-only", "link", "chmod", "chown", "times", "user-xattr", "trusted-xattr",
    "redirect-xattr",
)  # fmt: skip


@pytest.fixture(scope="module")
def this(registry: Registry, trial_image: str, whole_node: Node, plane: str) -> Iterator[Node]:
    """A node of each plane. The oracle is there before, or it would end with it."""
    with node(registry, settings=ALONE, plane=plane) as made:
        made.sandbox()
        made.pull(trial_image)
        yield made


def pushed(this: Node, name: str, *layers: BuiltLayer) -> str:
    """Put an image into the registry, pull it and return its id."""
    with this.registry.client() as client:
        push_built(client, name, layers)
    return this.pull(name)


def objects(this: Node) -> dict[str, Path]:
    """Files of the cache that are whole, by the first 64 digits of their names."""
    found = (Path(top, name) for top, _, names in os.walk(this.daemon.root / "objects") for name in names)
    return {path.name[:64]: path for path in found}


def test_file_named_like_an_object_is_never_taken_for_one(this: Node) -> None:
    data, evil = b"the right bytes\n", b"the wrong bytes\n"
    name = hashlib.sha256(data).hexdigest()
    inner = f"node/{name[:2]}/{name}"
    paths = [f"{top}{inner}" for top in ("", "objects/", "late/", "gate/", "fail/", "_/", "_aaaaaaaaaaaaa/")]
    paths += [f"{name[:2]}/{name}", name]
    folders = {parent for path in paths for parent in Path(path).parents if parent != Path(".")}
    lower = [*(dir(str(folder)) for folder in sorted(folders)), *(file(path, evil) for path in paths)]
    image = pushed(this, "attacks:paths", layer(*programs(), *lower), layer(dir("d"), file("d/f", data)))
    for _ in range(2):
        assert this.run(image, PROBE, "read", "/d/f").stdout == expected(data)
    assert this.run(image, PROBE, "read", f"/{inner}").stdout == expected(evil)


def test_trusted_attributes_and_devices_of_an_image_do_not_steer_the_overlay(this: Node, whole_node: Node) -> None:
    steer = {"trusted.overlay.metacopy": b"", "trusted.overlay.redirect": b"/secret", "user.stays": b"y"}
    lower = layer(
        *programs(),
        file("secret", SECRET, mode=0o600),
        *(dir(name) for name in ("shown", "merged", "secrets")),
        *(file(f"{name}/inside", name.encode()) for name in ("shown", "merged", "secrets")),
        *(file(name, name.encode()) for name in ("whited-out", "replaced")),
    )
    upper = layer(
        file("stolen", bytes(len(SECRET)), xattrs=steer),
        file("emptied", b"", xattrs=steer),
        dir("shown", xattrs={"trusted.overlay.opaque": b"y", "trusted.overlay.impure": b"y"}),
        dir("merged", xattrs={"trusted.overlay.redirect": b"/secrets"}),
        dir("taken", xattrs={"trusted.overlay.redirect": b"/secrets", "trusted.overlay.opaque": b"x"}),
        file("replaced", b"", xattrs={"trusted.overlay.whiteout": b"y"}),
        char("whited-out", 0, 0),
    )
    image = pushed(this, "attacks:attributes", lower, upper)
    output = this.run(image, "/bin/busybox", "sh", "-c", "cat /stolen /emptied | tr -d '\\0'; ls /taken /shown /merged")
    assert output.stdout == "/merged:\ninside\n\n/shown:\ninside\n\n/taken:\n"
    whole_node.pull_whole("attacks:attributes")
    with (
        this.view("attacks:attributes") as left,
        whole_node.view("attacks:attributes", namespace="default") as right,
    ):
        assert not (right / "whited-out").exists()
        assert report(differences(left, right)) == ""


def lying(toc: dict[str, Any]) -> None:
    """Gives the one large enough file the digest of another's content."""
    for row in toc["entries"]:
        if row["name"] == "d/lie":
            row["digest"] = row["chunkDigest"] = sha256(TRUTH)


def test_image_that_lies_about_a_digest_spoils_nobody_else_s_file(this: Node) -> None:
    lie = layer(*programs(), dir("d"), file("d/lie", b"x" * len(TRUTH)), edit=lying)
    evil = pushed(this, "attacks:lie", lie)
    assert this.run(evil, PROBE, "read", "/d/lie").stdout in {"open EIO\n", "read EIO\n"}
    honest = pushed(this, "attacks:truth", layer(*programs(), dir("d"), file("d/truth", TRUTH)))
    assert this.run(honest, PROBE, "read", "/d/truth").stdout == expected(TRUTH)


def test_naming_a_digest_gives_nothing_where_images_do_not_share(
    start_node: StartNode, trial_image: str, plane: str
) -> None:
    this = start_node({**ALONE, "cache": {**ALONE["cache"], "share": "image"}}, plane=plane)
    honest = pushed(this, "attacks-truth:own", layer(*programs(), dir("d"), file("d/truth", TRUTH)))
    assert this.run(honest, PROBE, "read", "/d/truth").stdout == expected(TRUTH)
    before = this.traffic()
    evil = pushed(this, "attacks-lie:own", layer(*programs(), dir("d"), file("d/lie", b"x" * len(TRUTH)), edit=lying))
    assert this.run(evil, PROBE, "read", "/d/lie").stdout in {"open EIO\n", "read EIO\n"}
    # Nor does it see what others have: its own tools came over the wire once more.
    assert this.traffic().since(before).received > len(probe_program()) / 3


@pytest.fixture(scope="module", params=[False, True], ids=["default", "privileged"])
def box(request: pytest.FixtureRequest, this: Node) -> Container:
    """A running container with the rights that containers have, or with all."""
    if not request.param:
        return this.start(this.reference("trial:lazy"), *SLEEP)
    logs = this.place / "privileged-logs"
    logs.mkdir()
    pod = this.cri.run_sandbox("privileged", logs, this.place.name, privileged=True)
    return pod.start("attacker", this.reference("trial:lazy"), SLEEP, privileged=True)


Trait = tuple[int, int, int, int, int, int, int, bytes, tuple[str, ...]]


def traits(path: Path) -> Trait:
    """Everything of an object that must not change."""
    status = path.lstat()
    kept = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
    blocks = status.st_blocks if stat.S_ISREG(status.st_mode) else 0
    return (*kept, blocks, path.read_bytes(), tuple(os.listxattr(path)))


def test_nothing_that_a_container_does_to_its_files_changes_an_object(this: Node, box: Container) -> None:
    targets = {attack: content("attack", number) for number, attack in enumerate(ATTACKS)}
    script = [f"{PROBE} read /attack/{number} > /dev/null" for number in range(len(ATTACKS))]
    script += [f"{PROBE} attack {attack} /attack/{number}" for number, attack in enumerate(ATTACKS)]
    assert box.exec(["/bin/busybox", "sh", "-c", "; ".join(script[: len(ATTACKS)])]).exit_code == 0
    names = {hashlib.sha256(data).hexdigest() for data in targets.values()}
    before = {name: traits(path) for name, path in objects(this).items() if name in names}
    assert before.keys() == names
    said = box.exec(["/bin/busybox", "sh", "-c", "; ".join(script[len(ATTACKS) :])]).stdout
    assert [line.split()[0] for line in said.splitlines()] == list(ATTACKS)
    assert {name: traits(path) for name, path in objects(this).items() if name in names} == before
    # What a file opened for reading, or memory mapped from it, does not allow is refused.
    for refused in ("map-protect", "proc-mem", "write-read-only"):
        assert f"{refused} ok" not in said
    other = this.start(this.reference("trial:lazy"), *SLEEP)
    for number, data in enumerate(targets.values()):
        assert other.exec([PROBE, "read", f"/attack/{number}"]).stdout == expected(data)


def test_large_file_is_not_changed_for_others_while_it_is_served_in_parts(this: Node, box: Container) -> None:
    assert box.exec([PROBE, "attack", "map-write", "/attack/large"]).stdout == "map-write ok\n"
    assert box.exec([PROBE, "read", "/attack/large"]).stdout == expected(b"EVIL" + large("attack")[4:])
    other = this.start(this.reference("trial:lazy"), *SLEEP)
    assert other.exec([PROBE, "read", "/attack/large"]).stdout == expected(large("attack"))


def test_name_of_the_place_of_contents_is_not_told_to_a_container(this: Node, box: Container) -> None:
    (place,) = os.listdir(this.daemon.root / "objects")
    look = """
    exec 3< /attack/1; cat /proc/self/mountinfo /proc/self/mounts /proc/self/maps /proc/1/maps
    ls -l /proc/self/fd /proc/self/map_files /proc/1/map_files
    cat /proc/self/fdinfo/3
    """
    told = box.exec(["/bin/busybox", "sh", "-c", look]).stdout
    assert "/attack/1" in told
    assert "/bin/busybox" in told
    assert place not in told
    assert str(this.daemon.root / "objects") not in told
    for path in ("attack/1", "attack/large", "bin/busybox"):
        assert [name for name in os.listxattr(this.rootfs(box) / path) if name.startswith("trusted.")] == []
