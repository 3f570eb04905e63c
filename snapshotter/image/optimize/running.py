"""From an image's source to the list of files that a container of it reads: staged, run once, and everything put away again."""

import os
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from snapshotter.containerd import leases
from snapshotter.containerd.channel import connected
from snapshotter.containerd.client import Client
from snapshotter.containerd.introspection import check_containerd
from snapshotter.errors import ConfigError, FormatError
from snapshotter.image import documents
from snapshotter.image.convert.layers import Watcher
from snapshotter.image.convert.selection import Chosen, choose
from snapshotter.image.optimize.abandoned import end_abandoned, marked
from snapshotter.image.optimize.apart import read_root
from snapshotter.image.optimize.cni import Network, connected_network
from snapshotter.image.optimize.etc_files import Names, own_hostname
from snapshotter.image.optimize.kept_blobs import KeptBlobs
from snapshotter.image.optimize.sampling import Plan, Sample, Watching, new_name, take_sample
from snapshotter.image.optimize.spec import Surroundings, spec_of
from snapshotter.image.optimize.staging import Image, Stage, Staged
from snapshotter.image.optimize.stdio import Streams
from snapshotter.image.optimize.terminal import terminal_size
from snapshotter.image.optimize.users import GROUP, PASSWD, find_user
from snapshotter.image.optimize.workload import Mount, Overrides, Workload, workload_of
from snapshotter.image.places.disk import disk_errors
from snapshotter.registry.manifest import Descriptor, ImageIndex, parse_manifest
from snapshotter.registry.platform import Platform, compatible, normalised

HOSTNAME = "sample"
"""What a container is called that has a network of its own."""

_SHOWN = 200
"""Characters of a command that are shown."""

_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, and how. `network`: one that plugins connect; None: none but loopback, or with `host_network` that of
    the machine. `plugin_dirs` has the plugins' programs. `platforms` are what will be converted, if that was said: it is
    checked before anything runs.
    """

    name: str
    overrides: Overrides
    watching: Watching
    streams: Streams
    names: Names
    snapshotter: str
    host: Platform
    platforms: Sequence[Platform] = ()
    host_network: bool = False
    network: Network | None = None
    plugin_dirs: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class Voice:
    """How the one who waits hears of it: `note` takes sentences, `watching` shows fetches while its block runs."""

    note: Callable[[str], None]
    watching: Callable[[], AbstractContextManager[Watcher]]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The manifest's digest of the image that ran, and what it read; `paths` begins with what the runtime reads itself."""

    manifest_digest: str
    paths: tuple[str, ...]
    sample: Sample


async def sample_image(
    containerd: Path, namespace: str, blobs: KeptBlobs, directory: Path, request: Request, voice: Voice
) -> Sampled:
    """Run a container of the image at `blobs`; `directory` is private to this process.

    Raises:
        ConfigError: nobody says what to run, or as whom.
        FormatError: not an image, or none for this machine.
        SnapshotterError: and its subclasses; in a group with what other tasks ended with.
    """
    image, digest = await _image(blobs, request)
    workload = workload_of(image.config.document, request.overrides)
    _check_sources(workload.mounts)
    with connected(containerd) as channel:
        plugins = await trio.to_thread.run_sync(check_containerd, channel, containerd, request.snapshotter)
        client = Client(channel, containerd, namespace, leases.new_id("optimize"))
        for name in await end_abandoned(client):
            voice.note(f"{name}, left by a command that was killed, is removed")
        async with _leased(client, voice):
            with voice.watching() as watcher:
                staged = await _staged(client, [plugin.id for plugin in plugins], image, blobs, watcher)
            return await _run(client, staged, digest, workload, directory, request, voice)


async def _image(blobs: KeptBlobs, request: Request) -> tuple[Image, str]:
    """The image for this machine, and its manifest's digest."""
    top = await blobs.manifest(None)
    whole = Chosen(Descriptor(top.media_type, top.digest, len(top.raw)), parse_manifest(top.raw, top.media_type))
    try:
        chosen = await choose(whole, request.host, blobs)
    except FormatError as error:
        raise FormatError(
            f"{error}; only an image for this machine can be run, --no-optimize converts without"
        ) from error
    for platform in request.platforms:
        await choose(whole, platform, blobs)
    manifest = chosen.image()
    config = documents.parse_config(await blobs.document(manifest.config), manifest.config, len(manifest.layers))
    there = normalised(Platform(config.os or "linux", config.architecture, config.variant))
    if there not in compatible(request.host):
        raise FormatError(
            f"{request.name} is an image for {there}, which cannot run on this machine ({request.host}): run this on one "
            "that can and give the result of --record-out to --record-in here, or convert without a run: --no-optimize"
        )
    alone = not isinstance(whole.document, ImageIndex)
    if alone and any(there not in compatible(platform) for platform in request.platforms):
        raise FormatError(f"{request.name} is an image for {there} alone; leave out --platform")
    for layer in manifest.layers:
        if layer.media_type not in documents.LAYERS:
            raise FormatError(f"layer {layer.digest} is {layer.media_type}, which cannot be unpacked")
    return Image(request.name, manifest, config), chosen.descriptor.digest


@asynccontextmanager
async def _leased(client: Client, voice: Voice) -> AsyncIterator[None]:
    """A lease for the block; with it goes what was made for the run, before this returns."""

    async def end() -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
            if complaint := await leases.end(client, sync=True):
                voice.note(complaint)

    try:
        await leases.create(client, marked())
        yield
    except BaseException:
        await end()
        raise
    await end()


async def _staged(
    client: Client, snapshotters: Sequence[str], image: Image, blobs: KeptBlobs, watcher: Watcher
) -> Staged:
    stage = Stage(client, snapshotters)
    try:
        return await stage.have(image, blobs, watcher)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
            await stage.undo()
        raise


async def _run(
    client: Client, staged: Staged, digest: str, workload: Workload, directory: Path, request: Request, voice: Voice
) -> Sampled:
    name = new_name()
    passwd, group = await _accounts(staged, directory, name)
    user = find_user(workload.user, passwd, group)
    place = directory / name
    with disk_errors(place):
        place.mkdir()
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(_network(request, name))
        around = Surroundings(
            cgroup=f"/{client.namespace}/{name}",
            hostname=own_hostname() if request.host_network else HOSTNAME,
            network=network,
            mounts=_name_files(place, request),
            unified_cgroups=os.path.exists(_UNIFIED),  # noqa: ASYNC240 (of sysfs)
            console=terminal_size(request.streams.stdout) if workload.terminal else None,
        )
        plan = Plan(
            name=name,
            image=request.name,
            spec=spec_of(workload, user, around),
            stop_signal=workload.stop_signal,
            watching=request.watching,
            streams=request.streams,
            terminal=workload.terminal,
            directory=place,
            labels=marked(),
        )
        voice.note(f"{_command(workload.args)} starts; it is watched {request.watching}")
        sample = await take_sample(client, staged, plan, voice.note)
    own = [file for file, content in ((PASSWD, passwd), (GROUP, group)) if content is not None]
    return Sampled(digest, tuple(dict.fromkeys((*own, *sample.paths))), sample)


def _command(args: Sequence[str]) -> str:
    """A command as a shell takes it, or the beginning of a long one."""
    words = shlex.join(args)
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}…"


async def _accounts(staged: Staged, directory: Path, name: str) -> list[bytes | None]:
    """etc/passwd and etc/group of the image."""
    if not staged.chain_id:
        return [None, None]
    place = directory / "root"
    with disk_errors(place):
        place.mkdir()
    key = f"{name}-view"
    try:
        mounts = await staged.snapshots.view(key, staged.chain_id)
        # Of a lazy root the files may have to come from a registry first, which is not waited for once it is given up.
        found = await trio.to_thread.run_sync(read_root, mounts, place, (PASSWD, GROUP), abandon_on_cancel=True)
    except BaseException:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + leases.TIDY_S):
            await staged.snapshots.remove(key)
        raise
    await staged.snapshots.remove(key)
    return found


def _network(request: Request, name: str) -> AbstractAsyncContextManager[str | None]:
    """The network of the container: a namespace's path, "" for one of its own, None for the machine's."""
    if request.network is not None:
        return connected_network(request.network, request.plugin_dirs, name)

    @asynccontextmanager
    async def plain() -> AsyncIterator[str | None]:
        yield None if request.host_network else ""

    return plain()


def _name_files(place: Path, request: Request) -> tuple[Mount, ...]:
    """The files about names, bound over the image's."""
    if request.host_network:
        return tuple(
            Mount(path, "bind", path, ("rbind", "ro"))
            for path in ("/etc/resolv.conf", "/etc/hosts")
            if os.path.exists(path)
        )
    files = {"resolv.conf": request.names.resolv_conf(), "hosts": request.names.hosts_file(HOSTNAME)}
    with disk_errors(place):
        for file, text in files.items():
            (place / file).write_text(text)
            (place / file).chmod(0o644)
    return tuple(Mount(f"/etc/{file}", "bind", str(place / file), ("rbind",)) for file in files)


def _check_sources(mounts: Sequence[Mount]) -> None:
    for mount in mounts:
        if {"bind", "rbind"} & set(mount.options) and not os.path.exists(mount.source):
            raise ConfigError(f"--mount: there is no {mount.source} on this machine")
