"""Traces by W3C Trace Context, for OpenTelemetry. Nothing of OpenTelemetry is imported before a tracer is made.

A request's span begins where the client's `traceparent` left off, and the headers that its upstream sees name this
span. Without a tracer they are the client's own. Spans and attributes: OpenTelemetry's semantic conventions for HTTP
servers and for generative AI.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from langport import __version__
from langport.errors import ConfigError
from langport.figures import Phases, phases_watcher
from langport.gateway.asgi import Header
from langport.gateway.exchange import CLIENT_GONE, Exchange
from langport.types import TokenUsage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_TRACE_HEADERS = (b"traceparent", b"tracestate")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_MAX_TRACESTATE_BYTES = 512
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_SHUTDOWN_MS = 5000
"""How long the last spans may take to the collector when the server ends."""


def trace_headers(headers: Iterable[Header]) -> list[Header]:
    """What of a request's headers its upstream must get, so that the trace goes on there; call it when a request is
    made for a remote server, with the scope's headers. None where the client sent nothing valid.
    """
    given = dict(headers)
    parent, state = (given.get(name, b"") for name in _TRACE_HEADERS)
    if not _TRACEPARENT.fullmatch(parent):
        return []
    found = [(b"traceparent", parent)]
    if 0 < len(state) <= _MAX_TRACESTATE_BYTES:
        found.append((b"tracestate", state))
    return found


class Tracer:
    """Makes a span of each request, with the engine's phases below it."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("langport", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> Tracer:
        """One that sends its spans to a collector's OTLP/HTTP address, in the background and in batches.

        The SDK's own environment variables say the rest: OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
        OTEL_EXPORTER_OTLP_HEADERS, ... Raises: ConfigError where it is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint needs OpenTelemetry, which is not installed ({error}). "
                "Install it with: pip install 'langport[otel]'"
            ) from None
        own = Resource.create({SERVICE_NAME: "langport", SERVICE_VERSION: __version__})
        provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def begin(self, exchange: Exchange) -> None:
        """Start the request's span, and let what comes after see it in the scope's headers."""
        from opentelemetry.trace import SpanKind

        carrier = {name.decode(): value.decode("latin-1") for name, value in trace_headers(exchange.scope["headers"])}
        span = self._tracer.start_span(
            exchange.method, context=self._propagator.extract(carrier), kind=SpanKind.SERVER, start_time=time.time_ns()
        )
        exchange.trace = Trace(self, span)
        outgoing: dict[str, str] = {}
        self._propagator.inject(outgoing, context=exchange.trace.context)
        headers = [header for header in exchange.scope["headers"] if header[0] not in _TRACE_HEADERS]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in outgoing.items()]
        exchange.scope = {**exchange.scope, "headers": headers}

    def add_phase(self, name: str, context: Context, begin_s: float, duration_s: float) -> float:
        """A span below the context's, of known times; when it ended, in seconds since 1970 like its beginning."""
        end_s = begin_s + duration_s
        span = self._tracer.start_span(name, context=context, start_time=int(begin_s * 1e9))
        span.end(int(end_s * 1e9))
        return end_s

    def close(self) -> None:
        """Send what is left. Waits for it: call it in a thread."""
        self._provider.force_flush(_SHUTDOWN_MS)
        self._provider.shutdown()


class Trace:
    """The span of one request."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._span = span
        self._began_s = time.time()
        self.context = set_span_in_context(span)
        self.trace_id = f"{span.get_span_context().trace_id:032x}"
        phases_watcher.set(self._add_phases)  # each request has a task, and with it a context, of its own

    def _add_phases(self, phases: Phases) -> None:
        """Told when an engine has done its part, perhaps after the request has ended (work in the background)."""
        begin_s = phases.asked_s
        begin_s = self._tracer.add_phase("engine queue", self.context, begin_s, phases.queue_s)
        begin_s = self._tracer.add_phase("engine prefill", self.context, begin_s, phases.prefill_s)
        self._tracer.add_phase("engine decode", self.context, begin_s, phases.decode_s)

    def end(self, exchange: Exchange, usage: TokenUsage) -> None:
        """The request has ended."""
        from opentelemetry.trace import StatusCode

        span = self._span
        if exchange.queue_s and exchange.asked_s is not None:
            asked_s = self._began_s + exchange.asked_s - exchange.started_s
            self._tracer.add_phase("gateway queue", self.context, asked_s - exchange.queue_s, exchange.queue_s)
        if span.is_recording():
            span.update_name(f"{exchange.method} {exchange.route}")
            span.set_attributes(_attributes(exchange, usage))
            if exchange.status >= 500:
                span.set_status(StatusCode.ERROR, exchange.error_code or None)
        span.end(time.time_ns())


def _attributes(exchange: Exchange, usage: TokenUsage) -> dict[str, str | int | float]:
    """Those that are known, and no others."""
    operation = _OPERATIONS.get(exchange.route)
    found: dict[str, str | int | float | None] = {
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": None if exchange.status == CLIENT_GONE else exchange.status,
        "error.type": exchange.error_code or ("client_gone" if exchange.status == CLIENT_GONE else None),
        "langport.request_id": exchange.request_id,
        "langport.key": exchange.key.name or None,
        "langport.upstream": exchange.deployment or None,
        "langport.queue_s": exchange.queue_s or None,
        "langport.overhead_s": exchange.overhead_s,
        "langport.first_token_s": exchange.first_token_s,
    }
    if exchange.model:
        found |= {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": exchange.model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
    return {name: value for name, value in found.items() if value is not None}
