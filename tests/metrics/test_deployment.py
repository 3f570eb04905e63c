"""The dashboard and the alert rules name metrics, labels and label values that the daemon really has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from snapshotter.config import CacheConfig
from snapshotter.daemon.numbers import cache_figures, pulled
from snapshotter.errors import Reason, Status
from snapshotter.layer.priority import Priority
from snapshotter.metrics.catalogue import FAMILIES, Kind
from snapshotter.service.pulls import PullLog

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
# What Prometheus itself adds to each series, and what it makes by itself of each target.
OF_PROMETHEUS = {"instance", "job"}
TARGET_METRIC = "up"

NAME = re.compile(r"\b(?:estargz|process)_[a-z_]+\b|\bup\b")
SELECTOR = re.compile(r"\b([a-z_]+)\{([^{}]*)\}")
MATCHER = re.compile(r'([a-z_]+)\s*(=~|!~|=|!=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left|without|ignoring)\s*\(([^)]*)\)")
DURATION = re.compile(r"[0-9]+[smhd]")


def names_and_labels() -> dict[str, set[str]]:
    """Every series name of a scrape, with its labels."""
    known: dict[str, set[str]] = {TARGET_METRIC: set()}
    for family in FAMILIES:
        if family.kind is Kind.HISTOGRAM:
            known[f"{family.name}_bucket"] = {*family.labels, "le"}
            known[f"{family.name}_count"] = known[f"{family.name}_sum"] = set(family.labels)
        else:
            known[family.name] = set(family.labels)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for metric in registry.collect():
        known |= {sample.name: set(sample.labels) for sample in metric.samples}
    return known


def dashboard() -> Any:
    return json.loads((FOLDER / "estargz-dashboard.json").read_text())


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FOLDER / "estargz-rules.yaml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the expression."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


EXPRESSIONS = dict(expressions())


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_metric_and_label_exists(place: str) -> None:
    expression, known = EXPRESSIONS[place], names_and_labels()
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    named = set(NAME.findall(without_strings))
    assert named, "it names none of our metrics"
    assert named <= known.keys()
    for name, matchers in SELECTOR.findall(expression):
        assert {label for label, _, _ in MATCHER.findall(matchers)} <= known[name] | OF_PROMETHEUS
    possible = set[str]().union(*(known[name] for name in named)) | OF_PROMETHEUS
    for grouping in GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= possible


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_label_values_that_are_asked_for_can_occur(place: str, tmp_path: Path) -> None:
    class Nothing:
        def usage(self) -> Any:
            return type("Usage", (), {"domains": {}, "deleted_open": 0, "held": 0, "used": 0, "unproven": 0})

    cache = cache_figures(Nothing(), CacheConfig(), tmp_path)  # type: ignore[arg-type]
    assert cache is not None
    values = {
        "result": {result for result, _ in pulled(PullLog())},
        "reason": {*Reason},
        "state": {"lazy", "complete", "failed", "ordinary"},
        "kind": {
            *cache.bytes_by_kind,
            *(p.name.lower() for p in Priority),
            "unreadable",
            "torn",
            "mismatch",
            "read",
            "lookup",
        },
        "code": {"OK", *(status.name for status in Status)},
        "method": {"Snapshots/Prepare"},
        "job": {"estargz-snapshotter"},
        "instance": {"$instance"},
    }
    for _, matchers in SELECTOR.findall(EXPRESSIONS[place]):
        for label, _, value in MATCHER.findall(matchers):
            assert set(value.split("|")) <= values[label]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Estargz[A-Za-z]+", rule["alert"])
    assert DURATION.fullmatch(rule.get("for", "0s"))
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert rule["expr"].count("(") == rule["expr"].count(")")


def test_alerts_have_names_of_their_own_and_cover_what_can_go_wrong() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    watched = " ".join(rule["expr"] for rule in rules())
    for metric in (
        "estargz_problems",
        "estargz_fuse_errors_total",
        "estargz_verification_failures_total",
        "estargz_disk_free_bytes",
        "estargz_evicted_bytes_total",
        "estargz_breaker_open",
        "estargz_wait_duration_seconds_bucket",
        "estargz_pulled_layers_total",
    ):
        assert metric in watched


def test_every_metric_is_on_the_dashboard() -> None:
    drawn = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    # The session is an annotation.
    left = {family.name for family in FAMILIES if family.name not in drawn} - {"estargz_session"}
    assert left == set()


def test_panels_lie_side_by_side_and_say_their_unit_and_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert all(0 <= x < 24 for x, _ in cells), panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] in {"timeseries", "stat"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    identifiers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_the_dashboard_asks_for_source_and_nodes() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["multi"]
    assert variables["instance"]["definition"] == "label_values(estargz_build_info, instance)"
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == ["Health", "Pulls", "Reads that wait", "Wire", "Cache", "Daemon"]
