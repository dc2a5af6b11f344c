"""What a person reads: a row per level of load while it is measured, ratios to an older report, what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from langport.bench.figures import Level, Loop, Report, Sample, Spread

LEVEL_NAMES: dict[Loop, str] = {"closed": "clients", "open": "arrivals/s"}
_BUSY = 0.5
"""Of a core: a client that takes more is part of what is measured."""

Column = tuple[str, int, Callable[[Level], str]]


def _times(name: str, spread: Callable[[Level], Spread | None]) -> list[Column]:
    def cell(percent: str) -> Callable[[Level], str]:
        def show(level: Level) -> str:
            found = spread(level)
            return "-" if found is None else milliseconds(getattr(found, percent))

        return show

    return [(f"{name}p50", 10, cell("p50")), ("p95", 7, cell("p95")), ("p99", 7, cell("p99"))]


def _columns(loop: Loop, *, is_embedding: bool) -> list[Column]:
    first: list[Column] = [
        (LEVEL_NAMES[loop], 10, lambda level: f"{level.level:g}"),
        ("requests", 9, lambda level: str(level.num_requests)),
        ("errors", 7, lambda level: str(sum(level.errors.values()))),
        ("req/s", 8, lambda level: f"{level.requests_per_s:.2f}"),
    ]
    if is_embedding:
        rates: list[Column] = [
            ("texts/s", 9, lambda level: f"{level.inputs_per_s:.1f}"),
            ("tokens/s", 10, lambda level: f"{level.prompt_tokens * level.requests_per_s:.0f}"),
        ]
        return [*first, *rates, *_times("all ", lambda level: level.answer_ms)]
    return [
        *first,
        ("tokens/s", 9, lambda level: f"{level.output_tokens_per_s:.1f}"),
        *_times("first ", lambda level: level.first_token_ms),
        *_times("next ", lambda level: level.inter_token_ms),
        *_times("all ", lambda level: level.answer_ms),
    ]


class Table:
    """Prints to `out`; while a level is measured, how far it is to `progress` if that is a terminal."""

    def __init__(self, loop: Loop, *, is_embedding: bool, out: TextIO | None = None, progress: TextIO | None = None):
        self._columns = _columns(loop, is_embedding=is_embedding)
        self._name = LEVEL_NAMES[loop]
        self._out = out or sys.stdout
        self._progress = progress or sys.stderr
        self._is_shown = self._progress.isatty()

    def head(self) -> None:
        print("".join(name.rjust(width) for name, width, _ in self._columns), file=self._out)

    def row(self, level: Level) -> None:
        self._clear()
        print("".join(cell(level).rjust(width) for _, width, cell in self._columns), file=self._out, flush=True)

    def counter(self, level: float, num_requests: int, clock: Callable[[], float]) -> Callable[[Sample], None]:
        """To be called with each sample; says on a terminal how many there are, five times a second at most."""
        num_done = num_tokens = 0
        began_s = shown_s = clock()

        def count(sample: Sample) -> None:
            nonlocal num_done, num_tokens, shown_s
            num_done += 1
            num_tokens += sample.output_tokens
            now = clock()
            if self._is_shown and now - shown_s >= 0.2:
                shown_s = now
                rate = num_tokens / (now - began_s)
                text = f"{self._name} {level:g}: {num_done} of {num_requests} answered, {rate:.0f} tokens/s"
                print(f"\r\x1b[K{text}", end="", file=self._progress, flush=True)

        return count

    def _clear(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=self._progress, flush=True)


def notes(levels: Sequence[Level]) -> list[str]:
    """What a reader of the table must know besides."""
    found = []
    if any(level.cached_share for level in levels):
        shares = ", ".join(f"{level.cached_share:.0%}" for level in levels)
        found.append(f"Of the prompts' tokens the server had cached {shares}.")
    if any(level.tokens_per_piece > 1.2 for level in levels):
        pieces = ", ".join(f"{level.tokens_per_piece:.1f}" for level in levels)
        found.append(f"A piece of text had {pieces} tokens on the average; the times from text to text are theirs.")
    if any(level.client_cpu_share > _BUSY for level in levels):
        shares = ", ".join(f"{level.client_cpu_share:.0%}" for level in levels)
        found.append(f"Measuring took {shares} of a core: where the server shares it, it could do better.")
    return found


def failures(levels: Sequence[Level]) -> list[str]:
    """A line per level and kind of error."""
    return [
        f"{LEVEL_NAMES[level.loop]} {level.level:g}: {num} of {level.num_requests} requests: {kind}"
        f" ({level.messages[kind]})"
        for level in levels
        for kind, num in level.errors.items()
    ]


def comparison(new: Report, old: Report) -> list[str]:
    """Lines that give the ratios of the new report to the old, level by level."""
    lines = [f"\nnew / old ({old.model} at {old.url}, {old.date}):"]
    for name, now, then in differing(new, old):
        lines.append(f"  not the same: {name} is {now}, was {then}")
    known = {(level.loop, level.level): level for level in old.levels}
    for level in new.levels:
        before = known.get((level.loop, level.level))
        name = f"  {LEVEL_NAMES[level.loop]} {level.level:g}: "
        if before is None:
            lines.append(f"{name}not in the old report")
        else:
            parts = (f"{what} {value:.2f}" for what, value in ratios(level, before).items())
            lines.append(name + ", ".join(parts))
    return lines


def differing(new: Report, old: Report) -> list[tuple[str, object, object]]:
    """What was asked differently: name, new, old."""
    before = {"endpoint": old.endpoint, **old.load}
    after = {"endpoint": new.endpoint, **new.load}
    names = [*after, *(name for name in before if name not in after)]
    found = ((name, after.get(name), before.get(name)) for name in names)
    return [(name, now, then) for name, now, then in found if now != then]


_COMPARED: dict[str, Callable[[Level], float | None]] = {
    "tokens/s": lambda level: level.output_tokens_per_s,
    "texts/s": lambda level: level.inputs_per_s,
    "requests/s": lambda level: level.requests_per_s,
    "first token p50": lambda level: level.first_token_ms.p50 if level.first_token_ms else None,
    "inter-token p50": lambda level: level.inter_token_ms.p50 if level.inter_token_ms else None,
    "inter-token p99": lambda level: level.inter_token_ms.p99 if level.inter_token_ms else None,
    "answer p50": lambda level: level.answer_ms.p50 if level.answer_ms else None,
}


def ratios(new: Level, old: Level) -> dict[str, float]:
    """new / old of what both have; rates above 1 and times below 1 are gains."""
    pairs = {name: (value(new), value(old)) for name, value in _COMPARED.items()}
    return {name: after / before for name, (after, before) in pairs.items() if after and before}


def milliseconds(value: float) -> str:
    """Three digits at least."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
