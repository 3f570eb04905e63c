"""What is committed in snapshotter/api is what the .proto files give, on containerd's wire."""

import runpy
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from snapshotter.api import mount_pb2, snapshots_pb2

TOP = Path(__file__).parent.parent.parent


def test_generating_again_gives_what_is_committed(tmp_path: Path) -> None:
    runpy.run_path(str(TOP / "proto" / "generate.py"))["generate"](tmp_path)
    api = TOP / "snapshotter" / "api"
    committed = {path.name for path in api.iterdir() if "_pb2" in path.name}
    assert {path.name for path in tmp_path.iterdir()} == committed
    for name in committed:
        assert (tmp_path / name).read_text() == (api / name).read_text(), f"{name}: run proto/generate.py"


def test_names_and_numbers_are_containerds() -> None:
    service = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
    assert service.full_name == "containerd.services.snapshots.v1.Snapshots"
    assert [method.name for method in service.methods] == [
        "Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup",
    ]  # fmt: skip
    numbers = {
        message.name: {field.name: field.number for field in message.fields}
        for message in snapshots_pb2.DESCRIPTOR.message_types_by_name.values()
    }
    creating = {"snapshotter": 1, "key": 2, "parent": 3, "labels": 4}
    assert numbers["PrepareSnapshotRequest"] == numbers["ViewSnapshotRequest"] == creating
    assert numbers["CommitSnapshotRequest"] == {"snapshotter": 1, "name": 2, "key": 3, "labels": 4, "parent": 5}
    assert numbers["Info"] == {"name": 1, "parent": 2, "kind": 3, "created_at": 4, "updated_at": 5, "labels": 6}
    assert numbers["UpdateSnapshotRequest"] == {"snapshotter": 1, "info": 2, "update_mask": 3}
    assert numbers["ListSnapshotsRequest"] == {"snapshotter": 1, "filters": 2}
    assert numbers["UsageResponse"] == {"size": 1, "inodes": 2}
    mount = mount_pb2.DESCRIPTOR.message_types_by_name["Mount"]
    assert mount.full_name == "containerd.types.Mount"
    assert {field.name: field.number for field in mount.fields} == {"type": 1, "source": 2, "target": 3, "options": 4}
    assert mount.fields_by_name["source"].type == FieldDescriptor.TYPE_STRING
    kinds = {value.name: value.number for value in snapshots_pb2.DESCRIPTOR.enum_types_by_name["Kind"].values}
    assert kinds == {"UNKNOWN": 0, "VIEW": 1, "ACTIVE": 2, "COMMITTED": 3}
