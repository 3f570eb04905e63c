"""The metrics put together. Imported only where `metrics.address` is set."""

import logging
from collections.abc import Callable

from snapshotter.errors import ConfigError
from snapshotter.metrics.exposition import Exposition
from snapshotter.metrics.figures import NodeNumbers
from snapshotter.metrics.server import MetricsServer

log = logging.getLogger(__name__)


def begin_metrics(address: str, numbers: NodeNumbers, complain: Callable[[str], None]) -> Callable[[], None]:
    """Answer scrapes from now on; return what stops that.

    An address that cannot be listened at is said and kept as a problem: no container must wait for figures.
    """
    try:
        server = MetricsServer(address, Exposition(numbers).render)
    except ConfigError as error:
        log.error("running without metrics: %s", error)  # noqa: TRY400 (the sentence says it all)
        complain(f"no metrics: {error}")
        return lambda: None
    server.start()
    log.info("metrics at %s, port %d", address, server.port)
    return server.stop
