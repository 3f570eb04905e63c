"""What a running containerd says of itself: its version, its plugins, its process."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf.empty_pb2 import Empty

from snapshotter.api.introspection_pb2 import PluginsRequest
from snapshotter.api.introspection_pb2_grpc import IntrospectionStub
from snapshotter.api.version_pb2_grpc import VersionStub
from snapshotter.errors import ContainerdUnfit

TIMEOUT_S = 10.0

SNAPSHOTTER_TYPE = "io.containerd.snapshotter.v1"

OLDEST = (1, 6)
"""The oldest containerd that is supported."""

_NUMBERS = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


class Version(NamedTuple):
    """Numbers of a release; what follows them (`-beta.1`, `~ds1`) is dropped."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin of a running containerd; `failure` is empty if it works."""

    type: str
    id: str
    exports: Mapping[str, str]
    capabilities: tuple[str, ...]
    failure: str


def parse_version(text: str) -> Version | None:
    """`1.6.20~ds1`, `v2.1.0-rc.1` → numbers; None if `text` begins with none."""
    match = _NUMBERS.match(text)
    return Version(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def version(channel: grpc.Channel) -> Version:
    """The version of the containerd that runs. Raises grpc.RpcError (see `channel.calling`), ContainerdUnfit."""
    answer = VersionStub(channel).Version(Empty(), timeout=TIMEOUT_S)  # type: ignore[no-untyped-call]
    found = parse_version(answer.version)
    if found is None:
        raise ContainerdUnfit(f"containerd calls its version {answer.version!r}, which has no numbers to go by")
    return found


def plugins(channel: grpc.Channel, kind: str = "") -> list[Plugin]:
    """Every plugin, or those of type `kind`. Raises grpc.RpcError (see `channel.calling`)."""
    request = PluginsRequest(filters=[f"type=={kind}"] if kind else [])
    answer = IntrospectionStub(channel).Plugins(request, timeout=TIMEOUT_S)  # type: ignore[no-untyped-call]
    return [
        Plugin(one.type, one.id, dict(one.exports), tuple(one.capabilities), one.init_err.message)
        for one in answer.plugins
    ]


def process(channel: grpc.Channel) -> int | None:
    """The process id of containerd; None before 1.7, which does not say. Raises grpc.RpcError."""
    answer = IntrospectionStub(channel).Server(Empty(), timeout=TIMEOUT_S)  # type: ignore[no-untyped-call]
    return int(answer.pid) or None


def check_containerd(channel: grpc.Channel, address: Path, name: str) -> list[Plugin]:
    """The snapshotter plugins that work, `name` first, of a containerd that images can be put into. Blocks.

    Raises:
        grpc.RpcError: see `channel.calling`.
        ContainerdUnfit: too old, or without a plugin of this name that works.
    """
    found = version(channel)
    if found[:2] < OLDEST:
        raise ContainerdUnfit(f"containerd {found} at {address} is too old: update it to 1.6 or later")
    there = {plugin.id: plugin for plugin in plugins(channel, SNAPSHOTTER_TYPE)}
    working = sorted(plugin.id for plugin in there.values() if not plugin.failure)
    if name not in there:
        raise ContainerdUnfit(
            f"containerd at {address} has no snapshotter {name} (it has {', '.join(working) or 'none'}): "
            "run `snapshotter config containerd --write`, restart containerd, and try again"
        )
    if there[name].failure:
        raise ContainerdUnfit(
            f"containerd at {address} could not load its snapshotter {name}: {there[name].failure}; "
            "run `snapshotter config containerd --write`, restart containerd, and try again"
        )
    return [there[name], *(there[other] for other in working if other != name)]
