"""A newer version finds what an older one has written, and goes on serving its containers.

The older version's state is made from this one's: databases, indexes and images are given the revisions that came before.
"""

import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from integration.conftest import ALONE, StartNode
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.readers import faults_of, push_readers_image, start_probe, start_reader, stop_readers
from snapshotter.format.index import INDEX_REVISION, NODES_REVISION

IMAGE = "readers:upgrade"


def age(root: Path, *, without_gate: bool) -> None:
    """Give what lies in `root` the revisions before those of now.

    `without_gate`: the database too. That revision knew no gate, which only the fuse plane can do without.
    """
    with closing(sqlite3.connect(root / "state.db")) as db:
        db.execute("UPDATE layers SET index_revision = ?", (NODES_REVISION,))
        if without_gate:
            db.executescript("DROP TABLE gate_files; DROP TABLE domains; PRAGMA user_version=1;")
        db.commit()
    for index in (root / "index").iterdir():
        old = index.with_name(index.name.replace(f".{INDEX_REVISION}.idx", f".{NODES_REVISION}.idx"))
        data = bytearray(index.read_bytes())
        data[8:12] = NODES_REVISION.to_bytes(4, "little")
        old.write_bytes(data)
        index.unlink()
    for image in (root / "erofs").glob("*.erofs"):
        image.rename(image.with_name(re.sub(r"[.][0-9]+[.]erofs$", ".0.erofs", image.name)))


def test_containers_of_an_older_version_read_on_and_its_state_is_brought_up_to_date(
    start_node: StartNode, registry: Registry, plane: str
) -> None:
    with registry.client() as client:
        push_readers_image(client, IMAGE, seed=21)
    node = start_node(ALONE, plane=plane)
    image = node.pull(IMAGE)
    containers = [start_reader(node, image, 1), start_probe(node, image)]
    for container in containers:
        wait_for(container.has_printed, "the beginning of a reader", 60)
    numbers = {row["digest"]: row["number"] for row in node.daemon.json("layers")}
    node.daemon.stop(signal.SIGTERM)
    age(node.daemon.root, without_gate=plane == "fuse")
    with node.outage():
        node.daemon.start()
        node.wait_until_served()
        status = node.daemon.json("status")
        # The reader may just have wanted something that it has not read before.
        problems = [problem for problem in status["problems"] if not problem.startswith("registry ")]
        assert (status["take_overs"], problems, status["layers_failed"]) == (1, [], 0)
    assert {row["digest"]: row["number"] for row in node.daemon.json("layers")} == numbers
    assert node.run(image, "/bin/busybox", "wc", "-c", "/data/1/1").exit_code == 0
    assert [faults_of(lines) for lines in stop_readers(node, containers)] == [[], []]
    index = node.daemon.root / "index"
    wait_for(
        lambda: all(f".{INDEX_REVISION}.idx" in one.name for one in index.iterdir()), "indexes of this version alone"
    )
    wait_for(lambda: not list((node.daemon.root / "erofs").glob("*.0.erofs")), "images of this version alone")
