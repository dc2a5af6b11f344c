"""The figures of several processes of one server as those of one: what `/metrics` shows with `--workers`.

Counters and histograms are added. Gauges are added where each process has a part of the whole; what is a fact about an
engine is the same in all of them, and what says whether something works says the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from langport.figures import Histogram
from langport.gateway import metrics
from langport.gateway.metrics import Block, Labels, Metric

Value = float | tuple[list[int], float]
"""A number, or a histogram's counts and sum."""
Packed = dict[str, list[tuple[Labels, Value]]]
"""By a metric's name: what crosses from one process to another."""

_GAUGES: Mapping[Metric, Callable[[float, float], float]] = {
    metrics.MODEL_READY: min,
    metrics.UPSTREAM_HEALTHY: min,
    metrics.INFO: max,
    metrics.STARTED: min,
}
"""Those that are not added."""
_BY_NAME = {metric.name: metric for metric in metrics.METRICS}
_ENGINE_PREFIX = "langport_engine_"


def pack(blocks: Iterable[Block]) -> Packed:
    """What is shown, as it is sent."""
    return {
        block.metric.name: [
            (labels, (value.counts, value.sum) if isinstance(value, Histogram) else float(value))
            for labels, value in block.samples
        ]
        for block in blocks
    }


def lasting(packed: Packed) -> Packed:
    """What goes on to count when its process has ended."""
    return {name: samples for name, samples in packed.items() if _lasts(name, samples)}


def _lasts(name: str, samples: Sequence[tuple[Labels, Value]]) -> bool:
    if any(isinstance(value, tuple) for _, value in samples):
        return True
    return not name.startswith(_ENGINE_PREFIX) and name in _BY_NAME and _BY_NAME[name].kind == "counter"


def add(parts: Iterable[Packed]) -> Packed:
    """All of them together, in the order in which they first come."""
    total: dict[str, dict[Labels, Value]] = {}
    for part in parts:
        for name, samples in part.items():
            sums = total.setdefault(name, {})
            for labels, value in samples:
                known = sums.get(labels)
                sums[labels] = value if known is None else _together(name, known, value)
    return {name: list(samples.items()) for name, samples in total.items()}


def _together(name: str, one: Value, other: Value) -> Value:
    if isinstance(one, tuple):
        assert isinstance(other, tuple)
        return [a + b for a, b in zip(one[0], other[0], strict=True)], one[1] + other[1]
    assert not isinstance(other, tuple)
    if name.startswith(_ENGINE_PREFIX):
        return max(one, other)
    metric = _BY_NAME.get(name)
    how = _GAUGES.get(metric) if metric is not None else None
    return one + other if how is None else how(one, other)


def unpack(packed: Packed, own: Sequence[Block]) -> list[Block]:
    """Blocks to show, in the order of the table; `own` are this process's, which know metrics that are in no table."""
    known = {block.metric.name: block for block in own}
    order = [*_BY_NAME, *(name for name in known if name not in _BY_NAME)]
    return [_block(known.get(name), name, packed[name]) for name in order if name in packed]


def _block(own: Block | None, name: str, samples: Sequence[tuple[Labels, Value]]) -> Block:
    metric = own.metric if own is not None else _BY_NAME[name]
    more_labels = own.more_labels if own is not None else ()
    return Block(metric, [(labels, _value(metric, value)) for labels, value in samples], more_labels)


def _value(metric: Metric, value: Value) -> float | Histogram:
    if not isinstance(value, tuple):
        return value
    histogram = Histogram(metric.bounds)
    histogram.counts, histogram.sum = value
    return histogram
