"""Prometheus figures. Labels take only routes of the table and served models, so they stay bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from langport.gateway.exchange import Exchange
from langport.gateway.models import Served

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_HELP = {
    "num_running": "Sequences in the engine's batch.",
    "num_waiting": "Sequences waiting for a place in the engine's batch.",
    "kv_cache_usage": "Used share of the KV cache, 0 to 1.",
}


class Metrics:
    """The gateway's own registry; several gateways in one process do not disturb each other."""

    def __init__(self, served: Served) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "langport_requests",
            "Requests answered. Status 499: the client left first.",
            ("route", "model", "status"),
            registry=self._registry,
        )
        self._duration = Histogram(
            "langport_request_duration_seconds",
            "From the request's headers to the end of its answer.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_byte = Histogram(
            "langport_time_to_first_byte_seconds",
            "From the request's headers to the first byte of its answer's body.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.num_in_flight = 0
        in_flight = Gauge("langport_requests_in_flight", "Requests being answered.", registry=self._registry)
        in_flight.set_function(lambda: self.num_in_flight)
        self._registry.register(_UpstreamCollector(served))
        # labels() costs more than what it finds, hence the children are kept.
        self._children: dict[tuple[str, str, int], Any] = {}
        self._timers: dict[tuple[str, str], tuple[Any, Any]] = {}

    def record(self, exchange: Exchange, duration_s: float) -> None:
        """Count a request that has ended."""
        route, model, status = exchange.route, exchange.model, exchange.status
        counter = self._children.get((route, model, status))
        if counter is None:
            counter = self._children[route, model, status] = self._requests.labels(route, model, str(status))
        timers = self._timers.get((route, model))
        if timers is None:
            timers = self._timers[route, model] = (
                self._duration.labels(route, model),
                self._first_byte.labels(route, model),
            )
        counter.inc()
        timers[0].observe(duration_s)
        if exchange.first_byte_s is not None:
            timers[1].observe(exchange.first_byte_s)

    def text(self) -> bytes:
        """Everything in Prometheus' exposition format."""
        text: bytes = generate_latest(self._registry)
        return text


class _UpstreamCollector:
    """Asks the upstreams when the metrics are read, and only then."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def describe(self) -> Iterable[Any]:
        """Nothing: names depend on what the upstreams report."""
        return ()

    def collect(self) -> Iterator[Any]:
        """One gauge per figure, one sample per model."""
        ready = GaugeMetricFamily("langport_model_ready", "1 when the model answers.", labels=("model",))
        figures: dict[str, Any] = {}
        for upstream in self._served.upstreams:
            ready.add_metric((upstream.name,), float(upstream.is_ready()[0]))
            for name, value in (upstream.stats() if upstream.stats else {}).items():
                if name not in figures:
                    figures[name] = GaugeMetricFamily(
                        f"langport_engine_{name}",
                        _HELP.get(name, "As reported by the engine."),
                        labels=("model",),
                    )
                figures[name].add_metric((upstream.name,), float(value))
        yield ready
        yield from figures.values()
