"""`snapshotter image convert`, run as the command line runs it, and two layers for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from snapshotter.cli.main import main
from tests.format.tars import entry, folder, hard_link, tar
from tests.image.images import OCI_INDEX, OCI_MANIFEST, Image, sha256, write_layout

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
LOWER = tar(folder("etc"), entry("etc/passwd", b"root:x:0:0"), folder("tmp", mode=0o1777), entry("old", b"1"))
UPPER = tar(folder("usr"), entry("usr/sh", b"#!" * 4000), hard_link("usr/bash", "usr/sh"), entry(".wh.old"))


def run(*arguments: str | Path) -> int:
    """Convert; the exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["image", "convert", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def index_of(path: Path, **images: Image) -> str:
    """A layout with an index: keywords are architectures."""
    blobs: dict[str, bytes] = {}
    children: list[dict[str, Any]] = []
    for architecture, one in images.items():
        children.append({**one.manifest(), "platform": {"os": "linux", "architecture": architecture}})
        blobs |= one.blobs
    attestation = {"mediaType": OCI_MANIFEST, "digest": sha256(b"{}"), "size": 2}
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*children, attestation]}
    raw = json.dumps(index).encode()
    top = {"mediaType": OCI_INDEX, "digest": sha256(raw), "size": len(raw)}
    write_layout(path, [top], {**blobs, sha256(raw): raw}, "v1")
    return f"oci:{path}:v1"
