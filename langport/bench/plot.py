"""Reports as a picture, by matplotlib, which is not installed with LangPort (`pip install 'langport[plot]'`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from langport.bench.figures import Report
from langport.bench.table import LEVEL_NAMES
from langport.errors import ConfigError


def check_plotting() -> None:
    """Raises: ConfigError when nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'langport[plot]', or leave --plot out.")


def plot(report: Report, path: Path) -> None:
    """Rates and times by level of load, as PNG."""
    from matplotlib.figure import Figure

    levels = report.levels
    is_embedding = report.endpoint == "embeddings"
    loads = [level.level for level in levels]
    figure = Figure(figsize=(12, 4), layout="constrained")
    rates, waits, gaps = figure.subplots(1, 3)
    rates.plot(loads, [level.inputs_per_s if is_embedding else level.output_tokens_per_s for level in levels], "o-")
    rates.set_ylabel("texts/s" if is_embedding else "output tokens/s")
    waiting = "whole answer, ms" if is_embedding else "to the first token, ms"
    for axes, name, spreads in (
        (waits, waiting, [level.answer_ms if is_embedding else level.first_token_ms for level in levels]),
        (gaps, "from token to token, ms", [level.inter_token_ms for level in levels]),
    ):
        axes.set_ylabel(name)
        for percent in ("p50", "p95", "p99"):
            points = [(load, getattr(times, percent)) for load, times in zip(loads, spreads, strict=True) if times]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=percent)
        if axes.lines:
            axes.legend()
        else:
            axes.set_visible(False)
    for axes in (rates, waits, gaps):
        axes.set_xlabel(LEVEL_NAMES[levels[0].loop])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{report.model} at {report.url}, {report.date}")
    figure.savefig(path, format="png", dpi=120)
