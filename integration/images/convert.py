"""The same image in lazily readable forms: by our converter, and by the other tool that Debian ships."""

from integration.harness.containerd import Ctr
from integration.harness.daemon import snapshotter


def convert(host: str, source: str, target: str, *options: str) -> None:
    """Convert an image of the registry at `host` with `snapshotter image convert`."""
    snapshotter(["image", "convert", *options, f"{host}/{source}", f"{host}/{target}"])


def convert_elsewhere(ctr_remote: Ctr, host: str, source: str, target: str, *options: str) -> None:
    """Convert an image of the registry at `host` with `ctr-remote image optimize`, without running it."""
    ctr_remote("content", "fetch", "--plain-http", f"{host}/{source}")
    ctr_remote("images", "optimize", "--no-optimize", "--oci", *options, f"{host}/{source}", f"{host}/{target}")
    ctr_remote("images", "push", "--plain-http", f"{host}/{target}")
