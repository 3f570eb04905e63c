"""Networks as CNI plugins make them, with plugins that note what they were told."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from snapshotter.errors import ConfigError, StoreError
from snapshotter.image.optimize.cni import Network, connected_network, first_network

# What a plugin was told lies beside it: environment and configuration of each call in one line.
PLUGIN = """#!/bin/sh
conf=$(cat)
printf '%s\\t%s\\t%s\\n' "{name}" "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_PATH" "$conf" >> "{folder}/calls"
readlink "$CNI_NETNS" >> "{folder}/namespaces"
{more}
[ "$CNI_COMMAND" = ADD ] && echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "10.0.0.{number}/24"}}]}}'
exit 0
"""
FAILS = """echo '{"code": 7, "msg": "no address", "details": "the pool is empty"}'; exit 1"""


def plugin(folder: Path, name: str, number: int = 1, more: str = "") -> None:
    """Put a plugin's program into a folder."""
    program = folder / name
    program.write_text(PLUGIN.format(name=name, folder=folder, number=number, more=more))
    program.chmod(0o755)


def network(*plugins: dict[str, Any]) -> Network:
    """A network of these plugins."""
    return Network("net", "1.0.0", plugins)


def calls(folder: Path) -> list[tuple[str, list[str], dict[str, Any]]]:
    """What each plugin was told, in order."""
    found = []
    for line in (folder / "calls").read_text().splitlines():
        name, words, conf = line.split("\t")
        found.append((name, words.split(" "), json.loads(conf)))
    return found


def connect(net: Network, folders: Sequence[Path], inside: str = "") -> list[str]:
    """Connect a network, and return the namespace that was there; with `inside` that is raised in the block."""
    seen: list[str] = []

    async def run() -> None:
        async with connected_network(net, folders, "box") as path:
            seen.append(os.readlink(path))
            if inside:
                raise KeyError(inside)

    trio.run(run)
    return seen


def test_plugins_run_in_order_and_are_undone_the_other_way_round(tmp_path: Path) -> None:
    plugin(tmp_path, "one", 1)
    plugin(tmp_path, "two", 2)
    first, second = {"type": "one", "mtu": 9000}, {"type": "two", "capabilities": {"portMappings": True}}
    (namespace,) = connect(network(first, second), (tmp_path / "none", tmp_path))
    told = calls(tmp_path)
    assert [(name, words[0]) for name, words, _ in told] == [
        ("one", "ADD"),
        ("two", "ADD"),
        ("two", "DEL"),
        ("one", "DEL"),
    ]
    assert all(words[1:3] == ["box", "eth0"] for _, words, _ in told)
    confs = [conf for _, _, conf in told]
    assert confs[0] == {"type": "one", "mtu": 9000, "name": "net", "cniVersion": "1.0.0"}
    result = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]}
    assert confs[1] == {"type": "two", "name": "net", "cniVersion": "1.0.0", "prevResult": result}
    # Undone with what came out in the end.
    assert [conf["prevResult"]["ips"][0]["address"] for conf in confs[2:]] == ["10.0.0.2/24"] * 2
    assert (tmp_path / "namespaces").read_text().splitlines() == [namespace] * 4
    assert namespace.startswith("net:[")
    assert namespace != os.readlink("/proc/self/ns/net")


def test_plugin_that_fails_is_told_in_its_words_and_all_are_undone(tmp_path: Path) -> None:
    plugin(tmp_path, "one")
    plugin(tmp_path, "two", more=FAILS)
    with pytest.raises(StoreError, match=r"two \(ADD\) failed: no address the pool is empty"):
        connect(network({"type": "one"}, {"type": "two"}), (tmp_path,))
    assert [words[0] for _, words, _ in calls(tmp_path)] == ["ADD", "ADD", "DEL", "DEL"]


def test_what_ends_the_block_undoes_the_network_and_goes_on(tmp_path: Path) -> None:
    plugin(tmp_path, "one")
    with pytest.raises(KeyError, match="inside"):
        connect(network({"type": "one"}), (tmp_path,), inside="inside")
    assert [words[0] for _, words, _ in calls(tmp_path)] == ["ADD", "DEL"]


def test_plugin_that_says_nothing_sensible_is_told_with_its_exit_code(tmp_path: Path) -> None:
    plugin(tmp_path, "one", more="exit 9")
    with pytest.raises(StoreError, match=r"one \(ADD\) failed: exit code 9"):
        connect(network({"type": "one"}), (tmp_path,))


def test_plugin_that_is_not_there_is_told_before_anything_is_made(tmp_path: Path) -> None:
    plugin(tmp_path, "one")
    with pytest.raises(ConfigError, match="no CNI plugin two in"):
        connect(network({"type": "one"}, {"type": "two"}), (tmp_path,))
    assert not (tmp_path / "calls").exists()


def test_first_file_by_name_is_the_network(tmp_path: Path) -> None:
    plugins = [{"type": "bridge"}, {"type": "portmap"}]
    (tmp_path / "20-list.conflist").write_text(json.dumps({"name": "list", "cniVersion": "1.0.0", "plugins": plugins}))
    (tmp_path / "00-readme.txt").write_text("not a configuration")
    assert first_network(tmp_path) == Network("list", "1.0.0", tuple(plugins))
    alone = {"name": "alone", "cniVersion": "0.4.0", "type": "ptp", "mtu": 1400}
    (tmp_path / "10-alone.conf").write_text(json.dumps(alone))
    assert first_network(tmp_path) == Network("alone", "0.4.0", (alone,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"plugins": []}',
        '{"name": "n", "plugins": [{"type": "../sh"}]}',
        '{"plugins": [{"type": "a"}]}',
    ],
)
def test_file_that_is_no_network_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "1.conflist").write_text(text)
    with pytest.raises(ConfigError, match=r"1\.conflist"):
        first_network(tmp_path)


def test_directory_without_a_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--cni-plugin-conf-dir"):
        first_network(tmp_path)
    with pytest.raises(ConfigError, match="No such file or directory"):
        first_network(tmp_path / "none")
