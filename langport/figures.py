"""What is measured while requests are answered, in plain Python that costs a fraction of a microsecond.

Engines and the gateway count with the same few things; how Prometheus or OpenTelemetry show them is the gateway's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import msgspec

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds for whatever takes as long as a request, or a part of one."""


class Histogram:
    """How many values lie between the bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        """`bounds` ascend; a value that equals one lies below it."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each place between two bounds alone; the last is everything above."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Phases(msgspec.Struct, frozen=True):
    """Where the time of an engine's request went, in seconds; of several sequences, the first one's."""

    asked_s: float
    """When the engine was asked, by `time.time`."""
    queue_s: float
    """Until its first step."""
    prefill_s: float
    """From there to its first token."""
    decode_s: float
    """From there to the last token of all its sequences."""


phases_watcher: ContextVar[Callable[[Phases], None] | None] = ContextVar("phases_watcher", default=None)
"""Is told the phases of each request that an engine has ended for this context; None where nobody traces."""
