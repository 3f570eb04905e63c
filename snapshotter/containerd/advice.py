"""What an admin must know and do besides the configuration, one sentence or two each."""

from snapshotter.containerd.lines import FIRST_OF_2, Wanted
from snapshotter.containerd.settings import EXPORTS_ROOT_SINCE, Settings


def advice(wanted: Wanted, *, flavour: str, restart: str, settings: Settings | None, our_config: str) -> list[str]:
    """Steps and facts for `wanted`, in the order in which they matter.

    `settings` are what containerd has now, None if they are not known; `our_config` names the configuration file of our daemon.
    """
    return [
        *_image_file_system(wanted, our_config),
        *_of_flavour(wanted, flavour),
        f"Start our daemon, then restart containerd: {restart}. Running containers go on.",
        *_older_images(wanted, settings),
        *_other_clients(wanted),
    ]


def _image_file_system(wanted: Wanted, our_config: str) -> list[str]:
    if wanted.root_is_told:
        return []
    if wanted.place == wanted.root:
        return [f"kubelet looks for images at {wanted.place}, which is our root: nothing to do."]
    return [
        (
            f"containerd before {EXPORTS_ROOT_SINCE} tells kubelet that images are at {wanted.place}, and that cannot be changed. "
            f"So our daemon's root must be there, else kubelet sees no image file system and cleans up nothing: before the "
            f'first pull set root = "{wanted.place}" in {our_config} (it is {wanted.root}).'
        )
    ]


def _of_flavour(wanted: Wanted, flavour: str) -> list[str]:
    if flavour in ("k3s", "rke2"):
        if wanted.version >= FIRST_OF_2:
            return []
        return [
            (
                f"{flavour} writes its configuration at each start; with --write a template beside it takes its place, a copy of what "
                f"it is now. Options of {flavour} about containerd have no effect while the template is there: make it again "
                "(--revert, restart, --write) after an upgrade."
            )
        ]
    if flavour == "k0s":
        return [
            "k0s merges the file into its own configuration at its next start; --write cannot check the result before."
        ]
    return []


def _older_images(wanted: Wanted, settings: Settings | None) -> list[str]:
    lines = [
        (
            f"Images on the node belong to the snapshotter that they were pulled for. For {wanted.name} containerd unpacks them "
            "once more, from the node, and they are not lazy: remove one and pull it again to have it lazy."
        )
    ]
    if settings is None or settings.discard_unpacked_layers:
        lines.append(
            (
                "discard_unpacked_layers is true here: "
                if settings
                else "Where discard_unpacked_layers is true (kind sets it), "
            )
            + "images pulled before cannot be unpacked again and their containers do not start. Remove them all, the pause "
            "image too (crictl rmi --prune), or configure the node before its first pull."
        )
    return lines


def _other_clients(wanted: Wanted) -> list[str]:
    if wanted.version < FIRST_OF_2:
        return [
            (
                f"`ctr images pull` is not lazy on this line: use `snapshotter image pull`, then "
                f"`ctr run --snapshotter={wanted.name}`."
            )
        ]
    if wanted.transfer:
        return []
    return [
        (
            f"`ctr images pull --local --snapshotter={wanted.name}` or `snapshotter image pull` outside of pods: what ctr does by "
            "itself, a pull through the transfer service, is lazy only with --transfer."
        )
    ]
