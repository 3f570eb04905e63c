"""The metrics of a node that pulls, reads and loses its registry: each figure is compared with what really happened."""

import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from integration.conftest import ALONE
from integration.harness.node import Node, node
from integration.harness.process import wait_for
from integration.harness.registry import Registry
from integration.images.trial import FILES_IN_FOLDER, content, large

IMAGES = ("trial", "small", "sample", "torture")
HEADERS_MAX = 2000
"""Bytes of one answer besides its body."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    """The series of one scrape."""

    series: Mapping[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        return sum(
            value for (found, has), value in self.series.items() if found == name and set(labels.items()) <= set(has)
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """The series of a metric by one label, without those that are 0."""
        return {dict(has)[label]: value for (found, has), value in self.series.items() if found == name and value}


@dataclass
class Measured:
    """A node, and where its metrics are."""

    node: Node
    port: int

    def scrape(self) -> Scrape:
        """What Prometheus would get."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return Scrape(
                {
                    (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                    for family in families
                    for sample in family.samples
                }
            )


def readable(path: Path) -> bool:
    """Whether a file's content can be had."""
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


@pytest.fixture(scope="module")
def measured(registry: Registry, trial_image: str, lazy_images: None, plane: str) -> Iterator[Measured]:
    settings = {**ALONE, "metrics": {"address": "127.0.0.1:0"}}
    settings["fetch"] = {**ALONE["fetch"], "on_outage": "error"}
    with node(registry, settings=settings, plane=plane) as made:
        made.pull(trial_image)
        ports: list[str] = []

        def listens() -> bool:
            ports[:] = re.findall(r"metrics at 127\.0\.0\.1:0, port (\d+)", made.daemon.log())
            return bool(ports)

        wait_for(listens, "the port of the metrics")
        yield Measured(made, int(ports[0]))


def test_a_lazy_pull_is_counted_layer_by_layer(measured: Measured, plane: str) -> None:
    found, layers = measured.scrape(), len(measured.node.layer_states("trial:lazy"))
    assert found.total("estargz_pulled_layers_total", result="lazy") == layers
    assert found.total("estargz_pulled_layers_total") == layers
    assert found.total("estargz_layers", state="lazy") == found.total("estargz_layers") == layers
    assert found.total("estargz_snapshots", kind="committed") == layers
    assert (
        found.total("estargz_rpc_duration_seconds_count", method="Snapshots/Prepare", code="ALREADY_EXISTS") == layers
    )
    assert found.total("estargz_plane_info", plane=plane) == 1
    assert found.total("estargz_layers_through_fuse") == found.total("estargz_problems") == 0


def test_bytes_are_those_that_crossed_the_line(measured: Measured, plane: str) -> None:
    this = measured.node
    with this.view("trial:lazy") as tree:
        before, traffic = measured.scrape(), this.traffic()
        for number in range(FILES_IN_FOLDER):
            assert (tree / f"tree/{number}").read_bytes() == content("tree", number)
        assert (tree / "tree/large").read_bytes() == large("tree")
        after, crossed = measured.scrape(), this.traffic().since(traffic)
        host = f"127.0.0.1:{this.relay.port}"
        assert set(after.by("estargz_fetched_bytes_total", "host")) == {host}
        fetched, ranges = (
            after.total(name, host=host) - before.total(name, host=host)
            for name in ("estargz_fetched_bytes_total", "estargz_fetches_total")
        )
        assert len(large("tree")) < fetched < crossed.received < fetched + HEADERS_MAX * ranges
        # Who opens a file waits for it: in a read, or on the erofs plane in a lookup.
        kind = "lookup" if plane == "erofs" else "read"
        waits = after.total("estargz_wait_duration_seconds_count", kind=kind)
        assert waits - before.total("estargz_wait_duration_seconds_count", kind=kind) >= FILES_IN_FOLDER
        assert after.total("estargz_fetch_first_byte_duration_seconds_count") == after.total("estargz_fetches_total")
        assert after.total("estargz_waiting") == after.total("estargz_fuse_errors_total") == 0
        # A reader has its bytes before the file that they complete is an object.
        whole = lambda: measured.scrape().total("estargz_cache_bytes", kind="object") > fetched  # noqa: E731
        wait_for(whole, "an object of each file")
        # Once more, and nothing is fetched.
        assert (tree / "tree/large").read_bytes() == large("tree")
        assert measured.scrape().total("estargz_fetched_bytes_total") == after.total("estargz_fetched_bytes_total")


def test_what_the_kernel_asked_is_what_the_status_says(measured: Measured) -> None:
    # The kernel may ask something between the two looks, such as to forget what the test before has read.
    def agree() -> bool:
        counted = measured.scrape().by("estargz_fuse_operations_total", "operation")
        return counted == dict(measured.node.fuse_requests())

    wait_for(agree, "two figures that agree")


def test_more_images_make_no_more_series(measured: Measured) -> None:
    """But for methods, codes and kinds of request that had not occurred yet, which are few by nature."""
    occurring = ("estargz_rpc_duration_seconds", "estargz_fuse_operations_total")

    def names() -> set[tuple[str, Labels]]:
        return {key for key in measured.scrape().series if not key[0].startswith(occurring)}

    before, this = names(), measured.node
    for image in IMAGES[1:]:
        this.pull(f"{image}:lazy")
        with this.view(f"{image}:lazy") as tree:
            assert any(tree.iterdir())
    assert names() == before
    values = {value for _, labels in measured.scrape().series for label, value in labels if label != "method"}
    assert not [value for value in values for word in (*IMAGES, "sha256", "/", "k8s") if word in value]


def test_a_layer_that_is_not_lazy_is_counted_with_its_reason(measured: Measured, registry: Registry) -> None:
    before = measured.scrape()
    with registry.client() as client:
        layers = len(client.manifest("torture-readable", "plain")["layers"])
    measured.node.pull("torture-readable:plain")
    after = measured.scrape()
    reasons = after.by("estargz_pulled_layers_total", "reason")
    assert reasons["no-toc-digest"] == layers
    ordinary = (one.total("estargz_pulled_layers_total", result="ordinary") for one in (before, after))
    assert [*ordinary] == [0, layers]
    assert after.total("estargz_layers", state="ordinary") == layers


def test_a_registry_that_is_away_shows(measured: Measured) -> None:
    this, before = measured.node, measured.scrape()
    with this.view("trial:lazy") as tree:
        with this.outage():
            for number in range(4):
                with pytest.raises(OSError, match=r"Input/output error"):
                    (tree / f"outage/{number}").read_bytes()
            away = measured.scrape()
        host = f"127.0.0.1:{this.relay.port}"
        assert away.total("estargz_host_failing", host=host) == 1
        assert away.total("estargz_breaker_open", host=host) == 1
        assert away.total("estargz_fetch_failures_total", host=host) > 0
        assert away.total("estargz_retries_exhausted_total") > before.total("estargz_retries_exhausted_total")
        assert away.total("estargz_retries_total") > before.total("estargz_retries_total")
        # The kernel may ask more than once for what it does not get.
        assert away.total("estargz_fuse_errors_total") >= 4
        assert away.total("estargz_problems") == 1
        # A host that is away is asked once a second, and without on_outage's wait nobody waits for that.
        wait_for(lambda: readable(tree / "outage/5"), "the registry's return")
        assert (tree / "outage/5").read_bytes() == content("outage", 5)
    back = measured.scrape()
    assert (
        back.total("estargz_host_failing") == back.total("estargz_breaker_open") == back.total("estargz_problems") == 0
    )
