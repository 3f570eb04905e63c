"""Update masks (containerd-contract 1.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgument
from snapshotter.service.field_mask import masked_labels

KEYS = st.sampled_from(["a", "containerd.io/gc.root", "x.y", "", "labels"])
LABELS = st.dictionaries(KEYS, st.sampled_from(["", "1", "2"]))


def test_no_path_replaces_everything_and_drops_empty_values() -> None:
    assert masked_labels({"a": "1", "b": "2"}, {"c": "3", "d": ""}, []) == {"c": "3"}


def test_the_whole_rest_of_a_path_is_the_key() -> None:
    asked = {"containerd.io/gc.root": "now", "other": "ignored"}
    assert masked_labels({"a": "1"}, asked, ["labels.containerd.io/gc.root"]) == {
        "a": "1",
        "containerd.io/gc.root": "now",
    }


def test_a_key_that_the_request_lacks_is_removed() -> None:
    assert masked_labels({"a": "1", "b": "2"}, {}, ["labels.a", "labels.none"]) == {"b": "2"}


@pytest.mark.parametrize("path", ["parent", "kind", "created_at", "labels.", "Labels", "label", "labels/a", ""])
def test_other_paths_are_refused_wherever_they_stand(path: str) -> None:
    with pytest.raises(InvalidArgument, match="only labels"):
        masked_labels({"a": "1"}, {"a": "2"}, ["labels.a", path])


@given(LABELS, LABELS, st.lists(st.one_of(st.just("labels"), KEYS.filter(bool).map("labels.".__add__)), min_size=1))
def test_only_what_the_mask_names_changes(current: dict[str, str], asked: dict[str, str], paths: list[str]) -> None:
    result = masked_labels(current, asked, paths)
    named = {path.removeprefix("labels.") for path in paths}
    for key in set(current) | set(asked):
        changed = "labels" in paths or key in named
        assert result.get(key, "") == (asked if changed else current).get(key, "")
    assert "" not in result.values()
