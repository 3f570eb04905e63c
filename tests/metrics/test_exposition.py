"""The figures as Prometheus reads them."""

import re
from dataclasses import fields, replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from snapshotter.metrics.catalogue import FAMILIES, Kind
from snapshotter.metrics.exposition import Exposition
from snapshotter.metrics.figures import Figures
from tests.metrics.figures import FIGURES, Fixed

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def rendered(figures: Figures = FIGURES) -> str:
    return Exposition(Fixed(figures)).render("")[1].decode()


def test_values_stand_under_their_names_and_labels() -> None:
    found = samples(rendered())
    assert found["estargz_build_info", (("python", "3.11.0"), ("version", "1.2.3"))] == 1
    assert found["estargz_plane_info", (("plane", "erofs"),)] == 1
    assert found["estargz_pulled_layers_total", (("reason", "timeout"), ("result", "ordinary"))] == 1
    assert found["estargz_fetched_bytes_total", (("host", "registry.test"), ("kind", "demand"))] == 1234
    assert found["estargz_cache_bytes", (("kind", "deleted-open"),)] == 13
    assert found["estargz_waiting", (("kind", "read"),)] == 2


def test_buckets_are_cumulative_and_end_with_all() -> None:
    found = samples(rendered())
    name, kind = "estargz_wait_duration_seconds", ("kind", "read")
    buckets = [found[f"{name}_bucket", (kind, ("le", le))] for le in ("0.1", "1.0", "+Inf")]
    assert buckets == [3, 5, 6]
    assert found[f"{name}_count", (kind,)] == 6
    assert found[f"{name}_sum", (kind,)] == 7.5


def test_open_metrics_is_given_to_those_who_prefer_it() -> None:
    exposition = Exposition(Fixed())
    content_type, body = exposition.render(OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(body.decode())}  # type: ignore[no-untyped-call]
    assert {"estargz_retries", "estargz_wait_duration_seconds", "process_resident_memory_bytes"} <= names
    assert exposition.render("text/plain")[0].startswith("text/plain")


def test_process_has_memory_descriptors_processor_time_and_start() -> None:
    found = samples(rendered())
    for name in ("resident_memory_bytes", "open_fds", "cpu_seconds_total", "start_time_seconds"):
        assert found[f"process_{name}", ()] > 0


def test_every_scrape_reads_the_figures_anew() -> None:
    numbers = Fixed()
    exposition = Exposition(numbers)
    exposition.render("")
    numbers.figures = replace(FIGURES, reads=99)
    assert samples(exposition.render("")[1].decode())["estargz_reads_total", ()] == 99


def test_without_a_word_of_the_disk_the_cache_has_no_series_and_all_else_is_there() -> None:
    found = {name for name, _ in samples(rendered(replace(FIGURES, cache=None)))}
    assert not {
        name for name in found if name.startswith(("estargz_cache_used", "estargz_disk_", "estargz_cache_bytes"))
    }
    assert "estargz_reads_total" in found


def test_every_figure_is_shown() -> None:
    """Each field that changes must change the text."""
    for field in fields(Figures):
        value = getattr(FIGURES, field.name)
        bare = Figures(version="", python="", plane="", session=0)
        changed = replace(FIGURES, **{field.name: getattr(bare, field.name)})
        assert value != getattr(bare, field.name), field.name
        ours = re.compile(r"^estargz.*", re.MULTILINE)
        assert ours.findall(rendered(changed)) != ours.findall(rendered()), field.name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_and_sentences_follow_the_conventions(family: object) -> None:
    found = next(one for one in FAMILIES if one is family)
    assert re.fullmatch(r"estargz(_[a-z]+)+", found.name)
    assert found.name.endswith("_total") == (found.kind is Kind.COUNTER)
    assert (found.kind is Kind.HISTOGRAM) == found.name.endswith("_duration_seconds")
    assert found.doc.endswith(".")
    assert len(found.doc) > 30
    assert not {"layer", "image", "digest", "path", "file", "container", "pid"} & set(found.labels)
    series = found.values(FIGURES)
    assert series
    assert all(len(labels) == len(found.labels) for labels in series)


def test_names_are_given_once() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
