"""The specification of a sample container; integration/test_optimize.py compares it with that of containerd's own tool."""

from snapshotter.image.optimize.spec import CAPABILITIES, Surroundings, spec_of
from snapshotter.image.optimize.users import User
from snapshotter.image.optimize.workload import Mount, Workload

WORKLOAD = Workload(
    args=("/app", "serve"), env=("A=1",), cwd="/srv", user="worker", mounts=(), stop_signal="", terminal=False
)
USER = User(1000, 1001, (1001, 4))
AROUND = Surroundings(cgroup="/ns/name", hostname="sample", network="")


def test_process_is_the_workload_as_the_user_with_no_way_to_more() -> None:
    process = spec_of(WORKLOAD, USER, AROUND)["process"]
    assert process["args"] == ["/app", "serve"]
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 4]}
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    assert "CAP_SYS_ADMIN" not in CAPABILITIES
    # A machine may not let us lower it, and no program needs it.
    assert "oomScoreAdj" not in process
    assert "terminal" not in process


def test_network_is_its_own_a_given_one_or_the_machines() -> None:
    def network(around: Surroundings) -> list[dict[str, str]]:
        return [one for one in spec_of(WORKLOAD, USER, around)["linux"]["namespaces"] if one["type"] == "network"]

    assert network(AROUND) == [{"type": "network"}]
    assert network(Surroundings("/c", "h", "/proc/1/fd/3")) == [{"type": "network", "path": "/proc/1/fd/3"}]
    assert network(Surroundings("/c", "h", None)) == []


def test_cgroup_namespace_is_made_where_there_is_one_hierarchy() -> None:
    def kinds(around: Surroundings) -> set[str]:
        return {one["type"] for one in spec_of(WORKLOAD, USER, around)["linux"]["namespaces"]}

    assert kinds(Surroundings("/c", "h", "", unified_cgroups=True)) - kinds(AROUND) == {"cgroup"}


def test_mount_of_the_command_line_takes_the_place_of_another() -> None:
    mounts = (Mount("/dev/shm", "tmpfs", "shm", ("size=1g",)), Mount("/etc/hosts", "bind", "/mine", ("bind",)))
    workload = Workload(("/app",), (), "/", "", mounts, "", terminal=False)
    around = Surroundings("/c", "h", "", mounts=(Mount("/etc/hosts", "bind", "/other", ("bind",)),))
    found = {one["destination"]: one for one in spec_of(workload, USER, around)["mounts"]}
    assert found["/dev/shm"] == {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1g"]}
    assert found["/etc/hosts"]["source"] == "/mine"
    assert {"/proc", "/dev", "/sys", "/run"} <= set(found)


def test_terminal_begins_with_its_size() -> None:
    workload = Workload(("/app",), (), "/", "", (), "", terminal=True)
    process = spec_of(workload, USER, Surroundings("/c", "h", "", console=(80, 24)))["process"]
    assert process["terminal"] is True
    assert process["consoleSize"] == {"width": 80, "height": 24}
