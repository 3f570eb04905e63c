"""Image references, and what labels of a Prepare name: texts that were right, changed."""

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import ConfigError, NotLazy
from snapshotter.registry.reference import Reference, parse_reference
from snapshotter.service.labels import layer_request, said_reference
from tests.fuzz.mutations import TEXTS, Corpus, mutated
from tests.fuzz.rounds import fuzzed
from tests.service.remote_labels import L1, L2, T1, labels_of

DIGEST = "sha256:" + "0123456789abcdef" * 4
CORPUS = Corpus(
    text.encode()
    for text in (
        "python",
        "docker.io/library/python:3.11",
        f"registry.test:5000/team/app:v1@{DIGEST}",
        f"localhost/a/b/c@{DIGEST}",
        "[2001:db8::1]:5000/a__b/c-d.e:x",
        "127.0.0.1/x" + "/y" * 100,
    )
)


@fuzzed(50)
@given(mutated(CORPUS), st.sampled_from(("utf-8", "latin-1")))
def test_changed_reference_reads_back_to_itself_or_is_config_error(raw: bytes, coding: str) -> None:
    said = ""
    reference: Reference | None
    text = raw.decode(coding, "replace")
    try:
        reference = parse_reference(text)
    except ConfigError as error:
        reference, said = None, str(error)
    if reference is None:
        assert len(said) < 700
        return
    assert parse_reference(str(reference)) == reference
    # What becomes part of an address or of a path.
    for part in (reference.host, reference.repository, reference.selector):
        assert part.isascii()
        assert part.isprintable()
        assert not set(part) & set(" ?#%\\\"'")
    assert ".." not in reference.repository.split("/")
    assert "/" not in reference.host + reference.selector


SOUND = [labels_of("c1", L1, (L2,), toc=T1), labels_of("c1", L1)]


@fuzzed(50)
@given(st.data(), st.sampled_from(SOUND), st.sampled_from(("k8s.io", "default", "")))
def test_changed_labels_make_a_request_of_checked_values_or_are_not_lazy(
    data: st.DataObject, sound: dict[str, str], namespace: str
) -> None:
    labels = dict(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(labels)))
        changed = mutated(Corpus([labels[key].encode()])).map(lambda raw: raw.decode("utf-8", "replace"))
        labels[key] = data.draw(st.sampled_from(TEXTS) | changed)
    said = said_reference(labels)
    assert said.isascii()
    try:
        request = layer_request(namespace, labels)
    except NotLazy:
        return
    digests = (
        request.layer_digest,
        *request.image_layers,
        request.manifest_digest or DIGEST,
        request.toc_digest or DIGEST,
    )
    assert all(len(digest) == len(DIGEST) and digest.startswith("sha256:") for digest in digests)
    assert request.layer_digest in request.image_layers
    assert request.trusted_only is (namespace == "k8s.io")
