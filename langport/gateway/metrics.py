"""Figures for Prometheus. Labels take only routes of the table, served models, configured upstreams and, where the
settings say so, names of keys, so they stay bounded.

What a request costs is a few additions: prometheus_client's `labels().inc()` takes fifteen times as long.
Format: Prometheus' text exposition format, version 0.0.4.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from langport import __version__
from langport.figures import SECONDS, Histogram
from langport.gateway.exchange import Exchange
from langport.gateway.models import Served
from langport.gateway.queue import Lane
from langport.types import TokenUsage

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_FAST_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

Labels = tuple[str, ...]
Sample = tuple[Labels, float | Histogram]


@dataclass(frozen=True)
class Metric:
    """One row of docs/observability.md."""

    name: str
    """With `_total` where it is a counter."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = SECONDS
    """Of a histogram's buckets."""


class Block(NamedTuple):
    """A metric and what it shows."""

    metric: Metric
    samples: Collection[Sample]
    more_labels: Labels = ()
    """Names of labels beyond the metric's own."""


_SERVED = ("model", "upstream")
REQUESTS = Metric(
    "langport_requests_total",
    "counter",
    "Requests answered. Status 499: the client left first.",
    ("route", "model", "upstream", "status"),
)
ERRORS = Metric(
    "langport_errors_total",
    "counter",
    "Requests that this server itself refused or gave up, by the error's code (its type where it has none).",
    ("route", "model", "code"),
)
IN_FLIGHT = Metric("langport_requests_in_flight", "gauge", "Requests being answered.")
DURATION = Metric(
    "langport_request_duration_seconds",
    "histogram",
    "From the request's headers to the end of its answer.",
    ("route", *_SERVED),
)
FIRST_BYTE = Metric(
    "langport_time_to_first_byte_seconds",
    "histogram",
    "From the request's headers to the first byte of its answer's body.",
    ("route", *_SERVED),
)
FIRST_TOKEN = Metric(
    "langport_time_to_first_token_seconds",
    "histogram",
    "From the request's headers to the first event of a streamed answer.",
    _SERVED,
)
BETWEEN_TOKENS = Metric(
    "langport_inter_token_latency_seconds",
    "histogram",
    "Between two pieces of a streamed answer, each of one token or of several that came at once.",
    _SERVED,
    _TOKEN_SECONDS,
)
PER_TOKEN = Metric(
    "langport_time_per_output_token_seconds",
    "histogram",
    "A streamed answer's time after its first event, divided by its completion tokens after the first.",
    _SERVED,
    _TOKEN_SECONDS,
)
QUEUE = Metric(
    "langport_queue_time_seconds", "histogram", "Waiting here for a turn, before an upstream was asked.", _SERVED
)
QUEUED_REQUESTS = Metric("langport_queued_requests", "gauge", "Requests that wait here for their turn.", ("queue",))
QUEUED_TOKENS = Metric(
    "langport_queued_tokens", "gauge", "Tokens that they are likely to take, prompts' and completions'.", ("queue",)
)
PLACES = Metric("langport_places", "gauge", "Sequences that may be at a model at once; more wait here.", ("queue",))
PLACES_TAKEN = Metric("langport_places_taken", "gauge", "Those that are.", ("queue",))
OVERHEAD = Metric(
    "langport_overhead_seconds",
    "histogram",
    "This server's own part of the time to the start of an answer: without waiting for the client, in the queue, and "
    "for the upstream.",
    _SERVED,
    _FAST_SECONDS,
)
PROMPT_TOKENS = Metric(
    "langport_prompt_tokens_total", "counter", "Tokens of the prompts of requests that have ended.", _SERVED
)
GENERATION_TOKENS = Metric(
    "langport_generation_tokens_total", "counter", "Completion tokens of requests that have ended.", _SERVED
)
ESTIMATED = Metric(
    "langport_estimated_usage_total",
    "counter",
    "Requests whose tokens nobody counted: they are guessed from sizes.",
    _SERVED,
)
CACHE_REQUESTS = Metric(
    "langport_cache_requests_total",
    "counter",
    "Requests to models while the response cache is on: hit, miss, or bypass where it has nothing to do with them.",
    ("result",),
)
CACHE_BYTES = Metric("langport_cache_bytes", "gauge", "Memory that the kept answers take in this server.")
REQUEST_PROMPT = Metric("langport_request_prompt_tokens", "histogram", "Prompt tokens of a request.", _SERVED, _TOKENS)
REQUEST_GENERATION = Metric(
    "langport_request_generation_tokens", "histogram", "Completion tokens of a request.", _SERVED, _TOKENS
)
LOG_LINES_LOST = Metric(
    "langport_access_log_lost_lines_total", "counter", "Lines of the access log that could not be written."
)
MODEL_READY = Metric(
    "langport_model_ready", "gauge", "1 when the model answers, one that is not loaded too.", ("model",)
)
UPSTREAM_HEALTHY = Metric(
    "langport_upstream_healthy", "gauge", "1 when this deployment of the model gets requests.", _SERVED
)
INFO = Metric("langport_info", "gauge", "Always 1; which version runs.", ("version",))
CPU = Metric("process_cpu_seconds_total", "counter", "CPU time of this server, without the engines'.")
RESIDENT = Metric("process_resident_memory_bytes", "gauge", "Memory of this server, without the engines'.")
STARTED = Metric("process_start_time_seconds", "gauge", "When this server loaded its metrics, in seconds since 1970.")
OPEN_FILES = Metric("process_open_fds", "gauge", "Open file descriptors of this server.")


def _engine(figure: str, kind: Literal["counter", "gauge", "histogram"], help_text: str) -> Metric:
    return Metric(f"langport_engine_{figure}", kind, help_text, ("model",))


ENGINE = {
    metric.name.removeprefix("langport_engine_"): metric
    for metric in (
        _engine("loaded", "gauge", "1 while the model is in memory; one that is not is loaded by its next request."),
        _engine("loads_total", "counter", "How often the model was loaded."),
        _engine("num_running", "gauge", "Sequences in the engine's batch."),
        _engine("num_waiting", "gauge", "Sequences waiting for a place in the engine's batch."),
        _engine("kv_cache_usage", "gauge", "Used share of the KV cache, 0 to 1."),
        _engine("steps_total", "counter", "Forward passes."),
        _engine("computed_tokens_total", "counter", "Tokens that went through the model, prompts' and completions'."),
        _engine("generation_tokens_total", "counter", "Tokens drawn."),
        _engine("prefix_cache_queries_total", "counter", "Prompt tokens that were looked for in the prefix cache."),
        _engine("prefix_cache_hits_total", "counter", "Prompt tokens that were found in it, and not computed."),
        _engine("preemptions_total", "counter", "Sequences that had to give their cache to others, and begin again."),
        _engine("draft_tokens_total", "counter", "Tokens computed because they were likely to come next."),
        _engine("draft_tokens_accepted_total", "counter", "Those of them that were drawn."),
        _engine("queue_time_seconds", "histogram", "From a request's arrival at the engine to its first step."),
        _engine("prefill_time_seconds", "histogram", "From a request's first step to its first token."),
        _engine("time_to_first_token_seconds", "histogram", "From a request's arrival there to its first token."),
    )
}  # fmt: skip
"""By the names under which `Upstream.stats` gives them. Others are shown too, as gauges or, with `_total`, counters."""

METRICS = (
    REQUESTS, ERRORS, IN_FLIGHT, DURATION, FIRST_BYTE, FIRST_TOKEN, BETWEEN_TOKENS, PER_TOKEN, QUEUE, QUEUED_REQUESTS,
    QUEUED_TOKENS, PLACES, PLACES_TAKEN, OVERHEAD,
    PROMPT_TOKENS, GENERATION_TOKENS, ESTIMATED, REQUEST_PROMPT, REQUEST_GENERATION, CACHE_REQUESTS, CACHE_BYTES,
    LOG_LINES_LOST, MODEL_READY, UPSTREAM_HEALTHY, *ENGINE.values(), INFO, CPU, RESIDENT, STARTED, OPEN_FILES,
)  # fmt: skip
"""Everything that /metrics may show."""


class _RouteTimes:
    """Histograms of one route, model and upstream."""

    def __init__(self) -> None:
        self.duration = Histogram(DURATION.bounds)
        self.first_byte = Histogram(FIRST_BYTE.bounds)


class _ModelTimes:
    """Histograms of one model and upstream, and their tokens."""

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN.bounds)
        self.between_tokens = Histogram(BETWEEN_TOKENS.bounds)
        self.per_token = Histogram(PER_TOKEN.bounds)
        self.queue = Histogram(QUEUE.bounds)
        self.overhead = Histogram(OVERHEAD.bounds)
        self.prompt = Histogram(REQUEST_PROMPT.bounds)
        self.generation = Histogram(REQUEST_GENERATION.bounds)


class Metrics:
    """One gateway's figures; several gateways in one process do not disturb each other."""

    def __init__(self, served: Served, *, lanes: Callable[[], Sequence[Lane]] = tuple, is_by_key: bool = False) -> None:
        """`is_by_key`: counters of requests and tokens have a label `key`, the name of the key."""
        self._lanes = lanes
        self.num_in_flight = 0
        self.num_lines_lost = 0
        self.num_cache_bytes: Callable[[], int] | None = None
        """What kept answers take, where they are kept."""
        self._served = served
        self._is_by_key = is_by_key
        self._requests: dict[Labels, float] = {}
        self._errors: dict[Labels, float] = {}
        self._prompt_tokens: dict[Labels, float] = {}
        self._generation_tokens: dict[Labels, float] = {}
        self._estimated: dict[Labels, float] = {}
        self._cache: dict[Labels, float] = {}
        self._routes: dict[Labels, _RouteTimes] = {}
        self._models: dict[Labels, _ModelTimes] = {}

    def gaps(self, exchange: Exchange) -> Histogram:
        """Where the pauses of a streamed answer are counted."""
        return self._times(exchange.model, exchange.deployment).between_tokens

    def record(self, exchange: Exchange, duration_s: float) -> None:
        """Count a request that has ended."""
        route, model, upstream = exchange.route, exchange.model, exchange.deployment
        labels: Labels = (route, model, upstream, str(exchange.status))
        _add(self._requests, (*labels, exchange.key.name) if self._is_by_key else labels)
        if exchange.error_code:
            _add(self._errors, (route, model, exchange.error_code))
        if exchange.cache:
            _add(self._cache, (exchange.cache,))
        served = (route, model, upstream)
        of_route = self._routes.get(served)
        if of_route is None:
            of_route = self._routes[served] = _RouteTimes()
        of_route.duration.observe(duration_s)
        if exchange.first_byte_s is not None:
            of_route.first_byte.observe(exchange.first_byte_s)
        if not model:
            return
        times = self._times(model, upstream)
        times.queue.observe(exchange.queue_s)
        if exchange.overhead_s is not None:
            times.overhead.observe(exchange.overhead_s)
        if exchange.first_token_s is not None:
            times.first_token.observe(exchange.first_token_s)

    def record_usage(self, exchange: Exchange, usage: TokenUsage) -> None:
        """Count the tokens of a request, once they are all known."""
        labels: Labels = (exchange.model, exchange.deployment)
        times = self._times(*labels)
        times.prompt.observe(usage.prompt_tokens)
        times.generation.observe(usage.completion_tokens)
        if usage.is_estimated:
            _add(self._estimated, labels)
        elif exchange.first_token_s is not None and usage.completion_tokens > 1:
            stream_s = exchange.last_chunk_s - exchange.first_token_s
            times.per_token.observe(stream_s / (usage.completion_tokens - 1))
        if self._is_by_key:
            labels = (*labels, exchange.key.name)
        _add(self._prompt_tokens, labels, usage.prompt_tokens)
        _add(self._generation_tokens, labels, usage.completion_tokens)

    def _times(self, model: str, upstream: str) -> _ModelTimes:
        times = self._models.get((model, upstream))
        if times is None:
            times = self._models[model, upstream] = _ModelTimes()
        return times

    def text(self) -> bytes:
        """Everything in Prometheus' exposition format."""
        return render(self.blocks())

    def blocks(self) -> list[Block]:
        """Everything, in the order of METRICS."""
        key = ("key",) if self._is_by_key else ()
        routes, models = self._routes.items(), self._models.items()
        return [
            Block(REQUESTS, self._requests.items(), key),
            Block(ERRORS, self._errors.items()),
            Block(IN_FLIGHT, [((), self.num_in_flight)]),
            Block(DURATION, [(labels, times.duration) for labels, times in routes]),
            Block(FIRST_BYTE, [(labels, times.first_byte) for labels, times in routes]),
            Block(FIRST_TOKEN, [(labels, times.first_token) for labels, times in models]),
            Block(BETWEEN_TOKENS, [(labels, times.between_tokens) for labels, times in models]),
            Block(PER_TOKEN, [(labels, times.per_token) for labels, times in models]),
            Block(QUEUE, [(labels, times.queue) for labels, times in models]),
            *queue_blocks(self._lanes()),
            Block(OVERHEAD, [(labels, times.overhead) for labels, times in models]),
            Block(PROMPT_TOKENS, self._prompt_tokens.items(), key),
            Block(GENERATION_TOKENS, self._generation_tokens.items(), key),
            Block(ESTIMATED, self._estimated.items()),
            Block(REQUEST_PROMPT, [(labels, times.prompt) for labels, times in models]),
            Block(REQUEST_GENERATION, [(labels, times.generation) for labels, times in models]),
            Block(CACHE_REQUESTS, self._cache.items()),
            Block(CACHE_BYTES, [((), self.num_cache_bytes())] if self.num_cache_bytes is not None else ()),
            Block(LOG_LINES_LOST, [((), self.num_lines_lost)]),
            *self._upstreams(),
            *process_blocks(),
        ]

    def _upstreams(self) -> Iterator[Block]:
        """What the upstreams say at this moment."""
        ready: list[Sample] = []
        healthy: list[Sample] = []
        figures: dict[str, list[Sample]] = {}
        for upstream in self._served.upstreams:
            ready.append(((upstream.name,), upstream.is_ready()[0]))
            if upstream.deployments is not None:
                states = upstream.deployments().items()
                healthy += [((upstream.name, name), is_healthy) for name, is_healthy in states]
            for name, value in (upstream.stats() if upstream.stats else {}).items():
                figures.setdefault(name, []).append(((upstream.name,), value))
        yield Block(MODEL_READY, ready)
        yield Block(UPSTREAM_HEALTHY, healthy)
        for name, samples in figures.items():
            metric = ENGINE.get(name)
            if metric is None:
                metric = _engine(name, "counter" if name.endswith("_total") else "gauge", "As reported by the engine.")
            yield Block(metric, samples)


def queue_blocks(lanes: Sequence[Lane]) -> Iterator[Block]:
    """What waits, and who has places."""
    yield Block(QUEUED_REQUESTS, [((lane.name,), lane.num_waiting) for lane in lanes])
    yield Block(QUEUED_TOKENS, [((lane.name,), lane.num_waiting_tokens) for lane in lanes])
    yield Block(PLACES, [((lane.name,), lane.num_places) for lane in lanes])
    yield Block(PLACES_TAKEN, [((lane.name,), lane.num_taken) for lane in lanes])


def process_blocks() -> Iterator[Block]:
    """What this process takes of the machine."""
    return (Block(metric, [(labels, value)]) for metric, labels, value in _process())


def render(blocks: Iterable[Block]) -> bytes:
    """In Prometheus' exposition format."""
    return "".join(_text(block.metric, block.samples, block.more_labels) for block in blocks).encode()


def _add(values: dict[Labels, float], labels: Labels, amount: float = 1) -> None:
    values[labels] = values.get(labels, 0) + amount


def _text(metric: Metric, samples: Iterable[Sample], more_labels: Labels) -> str:
    """A metric's lines; none where there is nothing to say yet."""
    names = (*metric.labels, *more_labels)
    lines: list[str] = []
    for values, value in samples:
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(names, values, strict=True))
        if isinstance(value, Histogram):
            lines += _buckets(metric.name, labels, value)
        else:
            lines.append(f"{metric.name}{{{labels}}} {float(value)!r}" if labels else f"{metric.name} {float(value)!r}")
    if not lines:
        return ""
    help_text = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    return "\n".join((f"# HELP {metric.name} {help_text}", f"# TYPE {metric.name} {metric.kind}", *lines, ""))


def _buckets(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    before = labels + "," if labels else ""
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        total += count
        le = "+Inf" if bound is None else repr(float(bound))
        yield f'{name}_bucket{{{before}le="{le}"}} {float(total)!r}'
    tail = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{tail} {histogram.sum!r}"
    yield f"{name}_count{tail} {float(total)!r}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


_STARTED_S = time.time()


def _process() -> Iterator[tuple[Metric, Labels, float]]:
    yield INFO, (__version__,), 1
    yield CPU, (), time.process_time()
    yield STARTED, (), _STARTED_S
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as statm:
            yield RESIDENT, (), int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield OPEN_FILES, (), len(os.listdir("/proc/self/fd"))
