"""The same image in lazily readable forms: by our converter, and by the other tools that Debian ships."""

import os
import subprocess
import tempfile
from pathlib import Path

from integration.harness.containerd import CommandFailed, Ctr
from integration.harness.daemon import snapshotter
from integration.images.oci import Image


def convert(host: str, source: str, target: str, *options: str) -> None:
    """Convert an image of the registry at `host` with `snapshotter image convert`."""
    snapshotter(["image", "convert", *options, f"{host}/{source}", f"{host}/{target}"])


def convert_elsewhere(ctr_remote: Ctr, host: str, source: str, target: str, *options: str) -> None:
    """Convert an image of the registry at `host` with `ctr-remote image optimize`, without running it."""
    ctr_remote("content", "fetch", "--plain-http", f"{host}/{source}")
    ctr_remote("images", "optimize", "--no-optimize", "--oci", *options, f"{host}/{source}", f"{host}/{target}")
    ctr_remote("images", "push", "--plain-http", f"{host}/{target}")


def push_with_skopeo(image: Image, host: str, target: str) -> None:
    """Push an image to the registry at `host` as zstd:chunked, as skopeo (and podman, by the same library) does.

    `target` must name a repository of its own: skopeo does not compress again what it finds there.
    """
    with tempfile.TemporaryDirectory(dir=image.folder.parent) as place:
        image.write(Path(place, "image"))
        # As somebody who is not root skopeo remembers blobs in a folder that can be named, and not on the machine.
        own = {"_CONTAINERS_ROOTLESS_UID": "1000", "XDG_DATA_HOME": place}
        options = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        command = ["skopeo", *options, "--dest-compress-format", "zstd:chunked", f"dir:{place}/image"]
        done = subprocess.run(
            [*command, f"docker://{host}/{target}"], capture_output=True, text=True, check=False, env=os.environ | own
        )
        if done.returncode:
            message = f"skopeo ended with {done.returncode}: {done.stderr.strip()}"
            raise CommandFailed(message)
