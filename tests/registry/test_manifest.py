"""Manifests and indexes: good ones read, odd ones refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FormatError
from snapshotter.registry.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    LAYERS_MAX,
    MANIFEST_MAX,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageIndex,
    ImageManifest,
    choose_platform,
    parse_manifest,
)
from snapshotter.registry.platform import Platform, host_platform

DIGEST = "sha256:" + "a" * 64
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": LAYER, "digest": DIGEST, "size": 7, **changes}


def image(**changes: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(),
        "layers": [descriptor()],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def index(*platforms: dict[str, str] | None, **changes: Any) -> dict[str, Any]:
    entries = [
        descriptor(mediaType=OCI_MANIFEST, digest=f"sha256:{n:064x}", **({"platform": p} if p is not None else {}))
        for n, p in enumerate(platforms)
    ]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **changes}


def parse(document: Any, media_type: str | None = None) -> ImageManifest | ImageIndex:
    return parse_manifest(json.dumps(document).encode(), media_type)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_manifest_is_read_with_all_that_layers_need(media_type: str) -> None:
    layers = [descriptor(annotations={"k": "v"}), descriptor(size=0)]
    found = parse(image(mediaType=media_type, layers=layers, annotations={"a": "b"}), media_type)
    assert isinstance(found, ImageManifest)
    assert [(layer.size, dict(layer.annotations)) for layer in found.layers] == [(7, {"k": "v"}), (0, {})]
    assert (found.media_type, found.config.digest, dict(found.annotations)) == (media_type, DIGEST, {"a": "b"})


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_is_read_with_its_platforms(media_type: str) -> None:
    found = parse(index({"os": "linux", "architecture": "arm", "variant": "v7"}, mediaType=media_type), media_type)
    assert isinstance(found, ImageIndex)
    assert found.manifests[0].platform == Platform("linux", "arm", "v7")


def test_without_any_media_type_the_shape_decides() -> None:
    assert isinstance(parse(image(mediaType=...), "application/json"), ImageManifest)
    assert isinstance(parse({"schemaVersion": 2, "manifests": []}), ImageIndex)


def test_null_lists_are_empty_as_go_writes_them() -> None:
    found = parse(image(layers=None, annotations=None))
    assert isinstance(found, ImageManifest)
    assert found.layers == ()


@pytest.mark.parametrize(
    "document",
    [
        [],
        "x",
        None,
        {},
        {"schemaVersion": 2},
        image(schemaVersion=1),
        image(schemaVersion="2"),
        image(schemaVersion=True),
        image(config=...),
        image(config=[]),
        image(layers={}),
        image(layers=[None]),
        image(layers=[descriptor(size=-1)]),
        image(layers=[descriptor(size=1 << 63)]),
        image(layers=[descriptor(size=1.5)]),
        image(layers=[descriptor(size="7")]),
        image(layers=[descriptor(digest="sha256:abc")]),
        image(layers=[descriptor(digest="sha512:" + "0" * 128)]),
        image(layers=[descriptor(digest=DIGEST.upper())]),
        image(layers=[descriptor(mediaType="")]),
        image(layers=[descriptor(mediaType="gzip")]),
        image(layers=[descriptor(mediaType="a/b\n")]),
        image(layers=[descriptor(mediaType="a/" + "b" * 300)]),
        image(layers=[descriptor(annotations={"a": 1})]),
        image(layers=[{"digest": DIGEST, "size": 1}]),
        image(annotations=[]),
        image(mediaType="text/html"),
        image(mediaType=OCI_INDEX),
        image(manifests=[]),
        index(layers=[]),
        index(config=descriptor()),
        image(fsLayers=[{"blobSum": DIGEST}]),
    ],
)
def test_an_odd_document_is_a_format_error(document: Any) -> None:
    with pytest.raises(FormatError):
        parse(document)


def test_a_registry_and_a_manifest_that_disagree_are_refused() -> None:
    with pytest.raises(FormatError, match="calls itself"):
        parse(image(mediaType=DOCKER_MANIFEST), OCI_MANIFEST)


def test_schema_one_is_named_in_the_error() -> None:
    with pytest.raises(FormatError, match="schema 1"):
        parse(image(mediaType=...), "application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_a_manifest_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(FormatError, match="limit"):
        parse_manifest(b" " * (MANIFEST_MAX + 1), OCI_MANIFEST)


def test_an_image_of_more_layers_than_an_overlay_stacks_is_refused() -> None:
    one = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:" + "1" * 64, "size": 1}
    read = parse(image(layers=[one] * LAYERS_MAX), OCI_MANIFEST)
    assert isinstance(read, ImageManifest)
    assert len(read.layers) == LAYERS_MAX
    with pytest.raises(FormatError, match=f"{LAYERS_MAX + 1} layers"):
        parse(image(layers=[one] * (LAYERS_MAX + 1)), OCI_MANIFEST)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b'{"schemaVersion":2',
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"schemaVersion":' + b"9" * 5000 + b"}",
    ],
)
def test_bytes_that_are_no_json_are_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_manifest(raw, OCI_MANIFEST)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["config", "layers", "size", "digest"]), inner)
    ),
    max_leaves=10,
)


@given(st.sampled_from(["config", "layers", "annotations", "mediaType", "schemaVersion", "manifests"]), _json)
def test_any_json_in_any_field_is_a_manifest_or_a_format_error(name: str, value: Any) -> None:
    try:
        found = parse(image(**{name: value}))
    except FormatError:
        return
    assert isinstance(found, ImageManifest)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_manifest_damaged_anywhere_is_a_manifest_or_a_format_error(noise: bytes, at: int) -> None:
    raw = json.dumps(image()).encode()
    try:
        parse_manifest(raw[:at] + noise + raw[at + len(noise) :])
    except FormatError:
        return


def test_lone_surrogates_never_reach_a_value() -> None:
    raw = json.dumps(image()).encode().replace(b'"size"', b'"annotations":{"a":"\\ud800"},"size"', 1)
    with pytest.raises(FormatError):
        parse_manifest(raw)


@pytest.mark.parametrize(
    ("machine", "offered", "chosen"),
    [
        ("x86_64", ["arm64", "amd64"], 1),
        ("x86_64", ["386", "amd64"], 1),
        ("x86_64", ["386", "arm64"], 0),
        ("aarch64", ["arm/v7", "arm64/v8", "amd64"], 1),
        ("aarch64", ["arm/v6", "arm/v7"], 1),
        ("armv7l", ["arm64", "arm/v6", "arm/v7"], 2),
        ("armv6l", ["arm/v7", "arm/v5"], 1),
        ("ppc64le", ["amd64", "ppc64le"], 1),
        ("loongarch64", ["loong64"], 0),
        ("x86_64", ["amd64", "amd64"], 0),
        ("aarch64", ["", "arm64"], 1),
        ("aarch64", ["amd64", ""], 1),
    ],
)
def test_the_platform_is_chosen_as_containerd_chooses(machine: str, offered: list[str], chosen: int) -> None:
    platforms = []
    for name in offered:
        architecture, _, variant = name.partition("/")
        platforms.append({"os": "linux", "architecture": architecture, "variant": variant} if name else None)
    found = parse(index(*platforms))
    assert isinstance(found, ImageIndex)
    assert choose_platform(found, host_platform(machine)).digest == f"sha256:{chosen:064x}"


def test_an_index_without_our_platform_says_what_it_has() -> None:
    found = parse(index({"os": "windows", "architecture": "amd64"}, {"os": "unknown", "architecture": "unknown"}))
    assert isinstance(found, ImageIndex)
    with pytest.raises(FormatError, match=r"linux/amd64; it has: unknown/unknown, windows/amd64"):
        choose_platform(found, host_platform("x86_64"))
