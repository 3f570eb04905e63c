"""What an Update changes: containerd's reading of a field mask on a snapshot's labels."""

from collections.abc import Mapping, Sequence

from snapshotter.errors import InvalidArgument

_ALL = "labels"
_ONE = "labels."


def masked_labels(current: Mapping[str, str], asked: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """Return the labels after an Update with this mask; `current` stays as it is.

    Without any path all labels are replaced. The key in `labels.<key>` is the whole rest of the path, dots and
    slashes included; a key that `asked` lacks, or has empty, is removed.

    Raises:
        InvalidArgument: a path that names anything but labels; nothing may be changed then.
    Source: containerd-contract 1.3.
    """
    labels = dict(current)
    for path in paths or (_ALL,):
        if path == _ALL:
            labels = dict(asked)
        elif path.startswith(_ONE) and len(path) > len(_ONE):
            key = path[len(_ONE) :]
            labels[key] = asked.get(key, "")
        else:
            raise InvalidArgument(f"cannot update {path!r} of a snapshot: only labels can be changed")
    return {key: value for key, value in labels.items() if value}
