"""Inode numbers say where they lead, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import PlaneError
from snapshotter.plane.fuse.inodes import (
    GATE_DIRECTORY,
    GATE_FILE,
    LAYER_BITS,
    NODE_BITS,
    SHARDS,
    SLOT_BITS,
    Fixed,
    GateDirectory,
    Numbers,
    Place,
    gate_directory,
    gate_directory_node,
    gate_file_node,
)

sessions = st.integers(1, 1 << 40)
layers = st.integers(1, (1 << LAYER_BITS) - 1)
nodes = st.integers(0, (1 << NODE_BITS) - 1)
gate_directories = st.builds(GateDirectory, st.integers(0, (1 << 15) - 1), st.integers(0, SHARDS))
gate_files = st.integers(1, GATE_FILE - 1)
gate_nodes = st.one_of(gate_directories.map(gate_directory_node), gate_files.map(gate_file_node))


@given(sessions, layers, nodes)
def test_number_leads_back_to_layer_and_node(session: int, layer: int, node: int) -> None:
    numbers = Numbers(session)
    assert numbers.place(numbers.of_node(layer, node)) == Place(layer, node)


@given(sessions, layers, nodes)
def test_top_four_bits_are_left_to_overlayfs(session: int, layer: int, node: int) -> None:
    assert Numbers(session).of_node(layer, node) < 1 << 60


@given(sessions, layers, nodes)
def test_number_is_the_same_in_every_process(session: int, layer: int, node: int) -> None:
    expected = (session % (1 << SLOT_BITS)) * 2 ** (NODE_BITS + LAYER_BITS) + layer * 2**NODE_BITS + node
    assert Numbers(session).of_node(layer, node) == expected


@given(sessions, layers, nodes)
def test_another_session_does_not_know_the_number(session: int, layer: int, node: int) -> None:
    assert Numbers(session + 1).place(Numbers(session).of_node(layer, node)) is None


def test_directories_above_the_layers_are_not_in_any_layer() -> None:
    numbers = Numbers(3)
    assert numbers.of_fixed(Fixed.ROOT) == 1
    for fixed in Fixed:
        assert numbers.place(numbers.of_fixed(fixed)) == Place(0, fixed)


@pytest.mark.parametrize("layer", [0, -1, 1 << LAYER_BITS])
def test_layer_number_without_room_is_refused(layer: int) -> None:
    with pytest.raises(PlaneError, match="layer number"):
        Numbers(1).of_node(layer, 0)


@pytest.mark.parametrize("node", [-1, 1 << NODE_BITS])
def test_node_without_room_is_refused(node: int) -> None:
    with pytest.raises(PlaneError, match="node"):
        Numbers(1).of_node(1, node)


# --- the gate


@given(gate_directories)
def test_node_of_a_gate_directory_leads_back_to_domain_and_shard(directory: GateDirectory) -> None:
    assert gate_directory(gate_directory_node(directory)) == directory


@given(gate_files)
def test_node_of_a_gate_file_leads_back_to_its_number(number: int) -> None:
    assert gate_file_node(number) & ~GATE_FILE == number


@given(gate_directories, gate_directories, gate_files, gate_files)
def test_no_two_things_in_the_gate_have_one_node(
    one: GateDirectory, other: GateDirectory, first: int, second: int
) -> None:
    assert (gate_directory_node(one) == gate_directory_node(other)) == (one == other)
    assert (gate_file_node(first) == gate_file_node(second)) == (first == second)
    assert gate_directory_node(one) != gate_file_node(first)


@given(gate_directories, gate_files)
def test_kind_of_a_gate_node_is_seen_in_its_bits(directory: GateDirectory, number: int) -> None:
    assert gate_file_node(number) & GATE_FILE
    assert not gate_directory_node(directory) & GATE_FILE
    assert gate_directory_node(directory) & GATE_DIRECTORY


@given(sessions, gate_nodes, layers, nodes)
def test_gate_is_in_no_layer_and_is_nothing_fixed(session: int, gate: int, layer: int, node: int) -> None:
    numbers = Numbers(session)
    inode = numbers.of_gate(gate)
    assert numbers.place(inode) == Place(0, gate)
    assert inode != numbers.of_node(layer, node)
    assert inode not in {numbers.of_fixed(fixed) for fixed in Fixed}
    assert inode < 1 << 60


@given(sessions, gate_nodes)
def test_another_session_does_not_know_a_number_of_the_gate(session: int, gate: int) -> None:
    assert Numbers(session + 1).place(Numbers(session).of_gate(gate)) is None


@pytest.mark.parametrize("number", [-1, 0, GATE_FILE, GATE_FILE + 1])
def test_gate_file_number_without_room_is_refused(number: int) -> None:
    with pytest.raises(PlaneError, match=f"gate file number {number} "):
        gate_file_node(number)


@pytest.mark.parametrize("domain", [-1, 1 << 15])
def test_sharing_domain_number_without_room_is_refused(domain: int) -> None:
    with pytest.raises(PlaneError, match=f"sharing domain number {domain} "):
        gate_directory_node(GateDirectory(domain, 0))


def test_the_last_numbers_have_room() -> None:
    numbers = Numbers(255)
    for node in (gate_file_node(GATE_FILE - 1), gate_directory_node(GateDirectory((1 << 15) - 1, SHARDS))):
        assert numbers.place(numbers.of_gate(node)) == Place(0, node)
