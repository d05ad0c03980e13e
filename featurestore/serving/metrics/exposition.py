"""The port that Prometheus reads: the numbers in its formats, over HTTP, apart from all service.

It answers for as long as the process lives, while calls are drained too. It asks nobody who they
are: the address belongs where only the monitoring gets to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from featurestore.errors import SettingsError
from featurestore.serving.metrics.board import Values
from featurestore.serving.metrics.families import FAMILIES, PREFIX, Family
from featurestore.serving.shared_port import split_address

if TYPE_CHECKING:
    from prometheus_client import Metric

_SETTING = "serving.metrics_address"


class MetricsServer:
    """Answers Prometheus at an address.

    Args:
        address: host:port; port 0 takes a free one.
        read: Returns the numbers as they are now.
        whole: Whether these are all the processes there are, so that what the process itself uses
            is told too.

    Attributes:
        address: Where it listens.

    Raises:
        SettingsError: The address cannot be listened on, or what it needs is not installed.
    """

    def __init__(self, address: str, read: Callable[[], Values], *, whole: bool) -> None:
        client = check_installed()
        host, port = split_address(address)
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(_Collector(client, read))
        if whole:
            client.ProcessCollector(registry=registry)
            client.GCCollector(registry=registry)
        try:
            self._server, self._thread = client.start_http_server(
                port, host.strip("[]"), registry=registry
            )
        except OSError as error:
            raise SettingsError(
                f"The metrics cannot be shown on {address}.",
                where=_SETTING,
                got=address,
                allowed="host:port of this machine that is free; port 0 takes a free one",
                hint=str(error),
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def check_installed() -> Any:
    """Return the library.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import prometheus_client
    except ImportError as error:
        raise SettingsError(
            "Metrics need the extra 'metrics'.",
            where=_SETTING,
            hint="pip install 'featurestore[metrics]'",
        ) from error
    return prometheus_client


class _Collector:
    """Makes metrics of numbers, whenever they are asked for."""

    def __init__(self, client: Any, read: Callable[[], Values]) -> None:
        self._kinds = {
            "counter": client.metrics_core.CounterMetricFamily,
            "gauge": client.metrics_core.GaugeMetricFamily,
        }
        self._histogram = client.metrics_core.HistogramMetricFamily
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        held: dict[Family, list[tuple[tuple[str, ...], list[float]]]] = {f: [] for f in FAMILIES}
        for (family, labels), numbers in self._read().items():
            if not family.sparse or any(numbers):
                held[family].append((labels, numbers))
        for family, series in held.items():
            yield self._metric(family, sorted(series))

    def _metric(
        self, family: Family, series: Iterable[tuple[tuple[str, ...], list[float]]]
    ) -> Metric:
        name, labels = PREFIX + family.name, family.labels
        if family.kind != "histogram":
            metric = self._kinds[family.kind](name, family.help, labels=labels)
            for values, (number,) in series:
                metric.add_metric(values, number)
            return cast("Metric", metric)
        histogram = self._histogram(name, family.help, labels=labels)
        bounds = [*map(str, family.bounds), "+Inf"]
        for values, (total, *counts) in series:
            buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
            histogram.add_metric(values, buckets, sum_value=total)
        return cast("Metric", histogram)
