"""Small images in dialects of the format that no tool at hand writes any more, or yet: built by the tests' own builder."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from integration.harness.registry import RegistryClient
from integration.images.oci import CONFIG, MANIFEST, config_of
from integration.images.sample import SMALL_WORKLOAD
from snapshotter.format.footer import Flavor
from tests.doubles.layers import BuiltLayer, Entry, dir, file, layer

EXTERNAL_SUFFIX = "-esgztoc"
TOC_OF = "containerd.io/snapshot/stargz/layer.digest"


def small_layers(flavor: Flavor, *, storage: bool = False) -> list[BuiltLayer]:
    """The small image's three layers in another dialect, which they name; `storage`: zstd:chunked's newer footer."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()

    def files(number: int) -> list[Entry]:
        text = f"layer {number} says hello\n".encode()
        return [dir("data"), file("data/changed", text), file(f"data/of-layer-{number}", text)]

    lowest = [dir("bin"), dir("tmp"), file("bin/busybox", busybox, mode=0o755)]
    contents = ([*lowest, file("dialect", f"{flavor} {storage}\n".encode())], files(1), files(2))
    return [layer(*entries, flavor=flavor, storage=storage) for entries in contents]


def many_layers(count: int) -> list[BuiltLayer]:
    """A busybox below `count` - 1 layers of one file each, every one of which also replaces the file `last`."""
    (busybox, *_) = small_layers(Flavor.ESTARGZ)
    numbers = range(1, count)
    return [busybox, *(layer(file(f"file-{n}", b"%d\n" % n), file("last", b"%d\n" % n)) for n in numbers)]


def push_built(client: RegistryClient, name: str, layers: Sequence[BuiltLayer]) -> None:
    """Put an image of `layers` into a registry as `repository:tag`, with their TOCs beside it if they lie outside."""
    repository, _, tag = name.partition(":")
    _push_blobs(client, repository, (one.blob for one in layers))
    rows = [_descriptor(one.blob, one.media_type, one.annotations) for one in layers]
    config = config_of({"Cmd": list(SMALL_WORKLOAD)}, [one.diff_id for one in layers])
    client.push_image(repository, tag, _manifest(rows), config)
    if layers[0].flavor is Flavor.EXTERNAL:
        _push_blobs(client, repository, (one.external_toc for one in layers))
        rows = [_descriptor(one.external_toc, one.media_type, {TOC_OF: one.digest}) for one in layers]
        client.push_image(repository, tag + EXTERNAL_SUFFIX, _manifest(rows), config_of({}, []))


def _manifest(layers: list[dict[str, object]]) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG}, "layers": layers}


def _descriptor(blob: bytes, media_type: str, annotations: dict[str, str]) -> dict[str, object]:
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    return {"mediaType": media_type, "digest": digest, "size": len(blob), "annotations": annotations}


def _push_blobs(client: RegistryClient, repository: str, blobs: Iterable[bytes]) -> None:
    for blob in blobs:
        with tempfile.NamedTemporaryFile() as content:
            content.write(blob)
            content.flush()
            client.push_blob(repository, "sha256:" + hashlib.sha256(blob).hexdigest(), Path(content.name))
