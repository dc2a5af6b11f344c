"""What an operator sees of each request: figures, a line in the access log, a span."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from langport.gateway.access_log import LineWriter, line_of, loggable_path
from langport.gateway.exchange import Exchange
from langport.gateway.metrics import Metrics
from langport.gateway.models import Served
from langport.gateway.queue import Lane
from langport.gateway.tracing import Tracer
from langport.settings.tree import TelemetrySettings
from langport.types import TokenUsage

access_logger = logging.getLogger("langport.access")

PROBES = frozenset(("/health", "/ready"))
"""Asked every few seconds, and for that reason not logged."""


class Telemetry:
    """Told when a request begins and when it has ended."""

    def __init__(
        self,
        served: Served,
        settings: TelemetrySettings,
        *,
        lanes: Callable[[], Sequence[Lane]] = tuple,
        tracer: Tracer | None = None,
    ) -> None:
        """`tracer`: instead of the one that the settings ask for.

        Raises: ConfigError when the log cannot be opened, or traces need what is not installed.
        """
        self.metrics = Metrics(served, lanes=lanes, is_by_key=settings.metrics_by_key)
        self._is_text = settings.access_log == "text"
        self._writer: LineWriter | None = None
        if settings.access_log == "json":
            self._writer = LineWriter(settings.access_log_file, self._count_lost)
        if tracer is None and settings.otlp_traces_endpoint is not None:
            tracer = Tracer.to(settings.otlp_traces_endpoint)
        self._tracer = tracer

    def begin(self, exchange: Exchange) -> None:
        """A request has come. Its scope's headers may be others from here on."""
        self.metrics.num_in_flight += 1
        exchange.find_gaps = self.metrics.gaps
        if self._tracer is not None:
            self._tracer.begin(exchange)

    def end(self, exchange: Exchange) -> None:
        """It has ended, however it did."""
        duration_s = time.perf_counter() - exchange.started_s
        usage = exchange.usage
        self.metrics.num_in_flight -= 1
        self.metrics.record(exchange, duration_s)
        if exchange.late_work is None:
            self._count_tokens(exchange, usage)
        else:
            exchange.late_work.add_done_callback(lambda _: self._count_tokens(exchange, exchange.usage))
        if exchange.route not in PROBES:
            if self._writer is not None:
                self._writer.write(line_of(exchange, usage, duration_s))
            elif self._is_text:
                _log_text(exchange, duration_s)
        if exchange.trace is not None:
            exchange.trace.end(exchange, usage)

    def close(self) -> None:
        """Write and send what waits. May take seconds: call it in a thread."""
        if self._writer is not None:
            self._writer.close()
        if self._tracer is not None:
            self._tracer.close()

    def _count_tokens(self, exchange: Exchange, usage: TokenUsage) -> None:
        if exchange.model and usage.total_tokens:
            self.metrics.record_usage(exchange, usage)

    def _count_lost(self, num_lines: int) -> None:
        self.metrics.num_lines_lost += num_lines


def _log_text(exchange: Exchange, duration_s: float) -> None:
    access_logger.info(
        "%s %s model=%s status=%d %.1fms id=%s",
        exchange.method,
        loggable_path(exchange.scope),
        exchange.model or "-",
        exchange.status,
        duration_s * 1000,
        exchange.request_id,
    )
