"""Every form that `image convert` writes: unpacked it is the source, mounted it is what it unpacks to, and other tools agree."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from integration.conftest import QUIET
from integration.fidelity import FORMAT_ENTRIES, differences, report
from integration.harness.containerd import run
from integration.harness.node import Node, node
from integration.harness.registry import Registry
from integration.images.convert import convert
from integration.images.dialects import EXTERNAL_SUFFIX

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
PREFETCHED = b"/links/b/second\n/contents/chunks\n/names/*\n/change/linked-2\n/change/opaque/shown\n/links/dangling\n"


@dataclass(frozen=True, slots=True)
class Form:
    """Which image is converted, and how. Two that unpack to the same tar are made of different images: containerd asks
    for a snapshot that it has only once."""

    source: str
    options: tuple[str, ...]


SHORT: Mapping[str, Form] = {
    "zstd": Form("torture", ("--zstdchunked",)),
    "shared": Form("torture", ("--min-chunk-size", "64KiB")),
    "prefetch": Form("torture", ("--prefetch-list", "LIST")),
    "external": Form("torture-next", ("--external-toc",)),
}
FORMS: Mapping[str, Form] = {
    **SHORT,
    "zstd-prefetch": Form("torture", ("--zstdchunked", "--prefetch-list", "LIST")),
    "external-shared": Form("torture", ("--external-toc", "--min-chunk-size", "1MiB", "--chunk-size", "1MiB")),
    "zstd-chunks": Form("torture-next", ("--zstdchunked", "--chunk-size", "64KiB", "--level", "1")),
    "distribution-zstd": Form("sample", ("--zstdchunked",)),
    "distribution-shared": Form("sample", ("--min-chunk-size", "64KiB")),
}
forms = pytest.mark.parametrize(
    "form", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in FORMS]
)


@pytest.fixture(scope="module")
def convert_to(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> "Converter":
    names = tmp_path_factory.mktemp("prefetch") / "list"
    names.write_bytes(PREFETCHED)
    return Converter(registry, str(names))


class Converter:
    """Converts the session's images, each form once."""

    def __init__(self, registry: Registry, prefetch_list: str) -> None:
        self._registry = registry
        self._list = prefetch_list
        self._made: set[str] = set()

    def __call__(self, form: str) -> tuple[str, str]:
        """The source and the image that it became."""
        chosen = FORMS[form]
        source, target = f"{chosen.source}:plain", f"{chosen.source}:{form}"
        if form not in self._made:
            self.again(form, source, target)
            self._made.add(form)
        return source, target

    def again(self, form: str, source: str, target: str) -> None:
        """The same conversion of another image."""
        options = FORMS[form].options
        convert(self._registry.host, source, target, *(self._list if word == "LIST" else word for word in options))


@pytest.fixture(scope="module")
def lazy_node(registry: Registry, plane: str) -> Iterator[Node]:
    """A node of each plane that these tests share."""
    with node(registry, settings=QUIET, plane=plane) as this:
        yield this


@forms
def test_converted_image_unpacks_to_what_its_source_unpacks_to(
    whole_node: Node, convert_to: Converter, form: str
) -> None:
    source, converted = convert_to(form)
    for name in (source, converted):
        whole_node.pull_whole(name)
    with (
        whole_node.view(source, namespace="default") as before,
        whole_node.view(converted, namespace="default") as after,
    ):
        assert report(differences(before, after)) == ""


@forms
def test_converted_image_is_shown_lazily_as_it_unpacks(
    lazy_node: Node, whole_node: Node, convert_to: Converter, form: str
) -> None:
    source, converted = convert_to(form)
    whole_node.pull_whole(source)
    lazy_node.pull(converted)
    assert set(lazy_node.layer_states(converted)) <= {"lazy", "complete"}
    with lazy_node.view(converted) as left, whole_node.view(source, namespace="default") as right:
        assert FORMAT_ENTRIES.isdisjoint(name.name.encode() for name in left.iterdir())
        assert report(differences(left, right)) == ""


@forms
def test_conversion_of_a_converted_image_changes_nothing(registry: Registry, convert_to: Converter, form: str) -> None:
    _, converted = convert_to(form)
    convert_to.again(form, converted, f"{converted}-again")
    repository, _, tag = converted.partition(":")
    with registry.client() as client:
        for suffix in ("", EXTERNAL_SUFFIX) if form.startswith("external") else ("",):
            once, again = (client.descriptor(repository, one + suffix) for one in (tag, f"{tag}-again"))
            assert once == again


def test_other_tool_finds_the_toc_digest_of_zstd_chunked_layers(whole_node: Node, convert_to: Converter) -> None:
    _, converted = convert_to("zstd")
    whole_node.pull_whole(converted)
    with whole_node.registry.client() as client:
        layers = client.manifest(*converted.split(":"))["layers"]
    for layer in layers:
        command = ("images", "get-toc-digest", "--zstdchunked", layer["digest"])
        assert whole_node.ctr(program="ctr-remote")(*command).strip() == layer["annotations"][TOC_DIGEST]


@pytest.mark.parametrize("form", ["zstd", "external"])
def test_skopeo_copies_and_inspects_the_image(registry: Registry, convert_to: Converter, form: str) -> None:
    _, converted = convert_to(form)
    repository, _, tag = converted.partition(":")
    plain, target = f"docker://{registry.host}/{converted}", f"docker://{registry.host}/copied:{form}"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
    run([*copy, "--all", "--preserve-digests", plain, target])
    seen = json.loads(run(["skopeo", "inspect", "--tls-verify=false", target]))
    with registry.client() as client:
        manifest = client.manifest(repository, tag)
        assert client.descriptor("copied", form) == client.descriptor(repository, tag)
    assert seen["Layers"] == [layer["digest"] for layer in manifest["layers"]]
    raw = run(["skopeo", "inspect", "--tls-verify=false", "--raw", target])
    assert seen["Digest"] == "sha256:" + hashlib.sha256(raw.encode()).hexdigest()
