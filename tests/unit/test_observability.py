"""docs/observability.md, the dashboard and the alert rules name what there is, all of it and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from langport.gateway.access_log import Line
from langport.gateway.metrics import METRICS, Metric

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "observability.md").read_text("utf-8")
DASHBOARD = json.loads((DOCS / "operations" / "grafana-dashboard.json").read_text("utf-8"))
RULES = yaml.safe_load((DOCS / "operations" / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
BY_NAME = {metric.name: metric for metric in METRICS}

FUNCTIONS = {
    "rate",
    "increase",
    "sum",
    "min",
    "max",
    "histogram_quantile",
    "min_over_time",
    "by",
    "and",
    "label_values",
}
TARGET_LABELS = {"instance", "job"}
"""What Prometheus adds to every sample."""
OUTSIDE = {"up"}
"""Metrics of Prometheus itself."""


def names_in(expression: str) -> set[str]:
    """What an expression reads, by the names of samples."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", bare)
    return set(re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*", bare)) - FUNCTIONS


def labels_in(expression: str) -> set[str]:
    """Labels that it chooses or groups by."""
    chosen = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    return {*chosen, *(name.strip() for names in grouped for name in names.split(","))}


def metric_of(sample: str) -> Metric:
    """Raises: KeyError for a sample that no metric has."""
    for suffix in ("_bucket", "_sum", "_count"):
        name = sample.removesuffix(suffix)
        if name != sample and name in BY_NAME and BY_NAME[name].kind == "histogram":
            return BY_NAME[name]
    metric = BY_NAME[sample]
    if metric.kind == "histogram":
        raise KeyError(f"{sample} is a histogram: it has _bucket, _sum and _count")
    return metric


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of the dashboard and of the rules."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def check(expression: str) -> None:
    known = set(TARGET_LABELS)
    names = names_in(expression)
    assert names, expression
    for name in names - OUTSIDE:
        metric = metric_of(name)
        known |= set(metric.labels) | ({"le"} if metric.kind == "histogram" else set())
    assert labels_in(expression) <= known, expression


@pytest.mark.parametrize(("where", "expression"), [*expressions()])
def test_expressions_read_only_what_there_is(where: str, expression: str) -> None:
    check(expression)
    for counter in re.findall(r"(?<!rate\()(?<!increase\()\b(\w+_total)\b", expression):
        raise AssertionError(f"{where}: {counter} is a counter: its value says nothing without rate()")


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(langport_made_up_total[5m])",
        "sum(rate(langport_time_to_first_token_seconds[5m]))",
        "sum by (made_up) (langport_model_ready)",
        'langport_model_ready{key="a"}',
        "langport_requests_in_flight + langport_gone",
        "rate(langport_requests_total_bucket[5m])",
    ],
)
def test_the_check_finds_what_there_is_not(wrong: str) -> None:
    with pytest.raises((KeyError, AssertionError)):
        check(wrong)


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, int] = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    variables: dict[str, Any] = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    query = variables["model"]["query"]["query"]
    assert names_in(query) - {"model"} == {"langport_requests_total"}
    assert "model" in BY_NAME["langport_requests_total"].labels


def test_rules_say_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert used <= labels_in(rule["expr"]) | {"instance", "model"}, rule["alert"]
        assert len(rule["annotations"]["description"]) > 20


def test_the_page_lists_every_metric_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \| ([^|]*) \| ([^|]*) \|", PAGE, re.MULTILINE)
    listed = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text.strip()) for name, kind, labels, text in rows]
    assert listed == [(metric.name, metric.kind, metric.labels, metric.help) for metric in METRICS]


def test_the_page_lists_every_field_of_the_access_log() -> None:
    section = PAGE.partition("## The access log")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert listed == [field.name for field in msgspec.structs.fields(Line)]
    (example,) = re.findall(r"^\{.*\}$", section, re.MULTILINE)
    line = msgspec.json.decode(example, type=Line)
    assert msgspec.json.encode(line).decode() == example
