"""The figures in Prometheus' format."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from snapshotter.metrics.catalogue import FAMILIES, Family, Kind
from snapshotter.metrics.figures import Distribution, Labels, NodeNumbers


class Exposition(Collector):
    """All metrics of this node and of this process. Reads the figures anew for each scrape and keeps none."""

    def __init__(self, numbers: NodeNumbers) -> None:
        self._numbers = numbers
        self._registry = CollectorRegistry(auto_describe=False)
        # process_*: memory, processor time, open files, and when it started.
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric with its series of this moment."""
        figures = self._numbers.read()
        for family in FAMILIES:
            yield _metric(family, family.values(figures).items())

    def render(self, accept: str) -> tuple[str, bytes]:
        """Return content type and text in the format that an Accept header prefers."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


def _metric(family: Family, series: Iterable[tuple[Labels, float | Distribution]]) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.doc, labels=family.labels)
        for labels, value in series:
            if isinstance(value, Distribution):
                histogram.add_metric(labels, _buckets(value), value.sum)
        return histogram
    plain = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = plain(family.name, family.doc, labels=family.labels)
    for labels, value in series:
        if not isinstance(value, Distribution):
            metric.add_metric(labels, value)
    return metric


def _buckets(value: Distribution) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as Prometheus wants them."""
    bounds = [*map(floatToGoString, value.bounds), "+Inf"]
    return list(zip(bounds, accumulate(value.counts), strict=True))
