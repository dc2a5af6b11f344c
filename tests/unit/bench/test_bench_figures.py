"""Statistics of samples with known times, exactly; ratios and tables of known figures."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import msgspec
import pytest

from langport.bench.figures import Level, Report, Run, Sample, percentile, spread, summary
from langport.bench.table import Table, comparison, failures, milliseconds, notes


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 50, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 95, 4.8),
        ([0.0, 10.0], 0, 0.0),
        ([0.0, 10.0], 100, 10.0),
        ([float(value) for value in range(101)], 99, 99.0),
    ],
)
def test_percentiles(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected, abs=1e-12)


def test_a_spread_is_in_milliseconds_and_needs_no_order() -> None:
    found = spread([0.004, 0.001, 0.003, 0.002, 0.005])
    assert found is not None
    assert (found.num, found.mean, found.p50, found.max) == (5, 3.0, 3.0, 5.0)
    assert (found.p95, found.p99) == (pytest.approx(4.8), pytest.approx(4.96))
    assert spread([]) is None


def streamed(began_s: float, pieces_s: list[float], num_tokens: int, **more: int) -> Sample:
    return Sample(began_s, pieces_s[-1] + 0.5, pieces_s, prompt_tokens=100, output_tokens=num_tokens, **more)


RUN = Run(
    "closed",
    2,
    [
        streamed(0.0, [1.0, 1.5, 3.0], 5, cached_tokens=50),
        streamed(1.0, [3.0, 3.5], 2),
        Sample(3.0, 3.1, error="status 503", message="busy"),
        Sample(3.0, 3.2, error="status 503", message="busy still"),
    ],
    elapsed_s=4.0,
    client_cpu_s=1.0,
)


def test_a_summary_of_streams() -> None:
    found = summary(RUN)
    assert (found.num_requests, found.num_answered) == (4, 2)
    assert found.output_tokens_per_s == 7 / 4
    assert found.requests_per_s == 2 / 4
    assert (found.prompt_tokens, found.output_tokens, found.cached_share) == (100, 3.5, 0.25)
    assert found.first_token_ms == spread([1.0, 2.0])
    assert found.inter_token_ms == spread([0.5, 1.5, 0.5])
    assert found.per_token_ms == spread([2.0 / 4, 0.5 / 1])
    assert found.answer_ms == spread([3.5, 3.0])
    assert found.tokens_per_piece == 7 / 5
    assert found.errors == {"status 503": 2}
    assert found.messages == {"status 503": "busy"}
    assert found.client_cpu_share == 0.25


def test_a_short_answer_counts_as_an_error_and_with_its_tokens() -> None:
    short = replace(streamed(0.0, [1.0], 1), error="short answer", message="1 of 2")
    found = summary(Run("closed", 1, [short], 2.0, 0.0))
    assert (found.num_answered, found.output_tokens_per_s, found.errors) == (1, 0.5, {"short answer": 1})
    assert (found.inter_token_ms, found.per_token_ms) == (None, None)


def test_a_summary_of_embeddings_and_of_nothing() -> None:
    texts = [Sample(0.0, 0.5, num_inputs=4, prompt_tokens=80), Sample(0.5, 1.0, num_inputs=4, prompt_tokens=40)]
    found = summary(Run("open", 3.5, texts, 2.0, 0.0))
    assert (found.inputs_per_s, found.requests_per_s, found.prompt_tokens) == (4.0, 1.0, 60)
    assert found.answer_ms == spread([0.5, 0.5])
    assert found.first_token_ms is None
    nothing = summary(Run("closed", 1, [Sample(0.0, 0.0, error="no connection")], 0.0, 0.0))
    assert (nothing.requests_per_s, nothing.output_tokens_per_s, nothing.answer_ms) == (0.0, 0.0, None)


def report(*levels: Level, **load: str | int) -> Report:
    return Report(date="2026-01-01", url="http://x/v1", model="m", endpoint="chat", load=dict(load), levels=[*levels])


def test_a_report_survives_its_file() -> None:
    told = report(summary(RUN), seed=3)
    assert msgspec.json.decode(msgspec.json.encode(told), type=Report) == told


def test_ratios_to_an_older_report() -> None:
    old = summary(RUN)
    faster = msgspec.structs.replace(old, output_tokens_per_s=3.5, first_token_ms=spread([0.75]))
    other = msgspec.structs.replace(old, level=8)
    lines = comparison(report(faster, other, seed=1), report(old, seed=2, batch=3))
    text = "\n".join(lines)
    assert "not the same: seed is 1, was 2" in text
    assert "not the same: batch is None, was 3" in text
    assert "clients 2: tokens/s 2.00, requests/s 1.00, first token p50 0.50, inter-token p50 1.00" in text
    assert "clients 8: not in the old report" in text


def test_the_table_has_a_cell_under_every_head() -> None:
    out, progress = StringIO(), StringIO()
    table = Table("closed", is_embedding=False, out=out, progress=progress)
    table.head()
    table.counter(2, 4, lambda: 0.0)(RUN.samples[0])
    table.row(summary(RUN))
    head, row = out.getvalue().splitlines()
    assert len(head) == len(row)
    assert row.split() == [
        "2",
        "4",
        "2",
        "0.50",
        "1.8",
        "1500",
        "1950",
        "1990",
        "500",
        "1400",
        "1480",
        "3250",
        "3475",
        "3495",
    ]
    assert progress.getvalue() == ""  # it is no terminal


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_at_most_five_times_a_second() -> None:
    times = iter([0.0, 0.1, 0.2, 0.25, 0.5])
    progress = Terminal()
    count = Table("closed", is_embedding=False, out=StringIO(), progress=progress).counter(2, 4, lambda: next(times))
    for _ in range(4):
        count(streamed(0.0, [1.0], 10))
    shown = [line.removeprefix("\x1b[K") for line in progress.getvalue().split("\r") if line]
    assert shown == ["clients 2: 2 of 4 answered, 100 tokens/s", "clients 2: 4 of 4 answered, 80 tokens/s"]


def test_what_a_reader_must_know_besides() -> None:
    plain = msgspec.structs.replace(summary(RUN), cached_share=0.0, tokens_per_piece=1.0)
    assert notes([plain]) == []
    found = notes([msgspec.structs.replace(summary(RUN), client_cpu_share=0.9)])
    assert ["25%" in found[0], "1.4 tokens" in found[1], "90%" in found[2]] == [True] * 3
    assert failures([plain]) == ["clients 2: 2 of 4 requests: status 503 (busy)"]


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (99.94, "99.9"), (5.0, "5.00")])
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds(value) == text
