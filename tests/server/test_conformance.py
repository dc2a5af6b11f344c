"""OpenAI's published API, checked by the conformance program against the bundled models."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import SPECIAL, save_checkpoint
from tests.conftest import KEYS
from tests.server.process import PATIENCE_S, Server, clean_environment, running
from tests.server.test_models import CHAT, EMBED

PROGRAM = Path(__file__).parent.parent / "conformance" / "conformance.py"
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
BUNDLED = ("--chat-model", CHAT, "--completion-model", CHAT, "--embedding-model", EMBED)
TINY = ("--chat-model", "tiny", "--completion-model", "tiny")
TINY_CONTEXT = 2048


def results_of(server: Server, report: Path, *options: str, key: str = "", tier: str = "core") -> list[dict[str, Any]]:
    """The result of each check. The options name the models."""
    command = [sys.executable, PROGRAM, "--base-url", f"{server.url}/v1", "--tier", tier, *options]
    run = subprocess.run(
        [*command, "--json", report],
        env=clean_environment(OPENAI_API_KEY=key),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert report.exists(), run.stdout + run.stderr
    results: list[dict[str, Any]] = json.loads(report.read_text())["results"]
    counted = ("fail", "skip") if "--strict" in options else ("fail",)
    assert run.returncode == any(r["status"] in counted and r["required"] for r in results)
    return results


def failed_and_passed(results: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The required checks that failed, and how many passed."""
    failed = [f"{r['id']}: {r['reason']}" for r in results if r["status"] == "fail" and r["required"]]
    return failed, sum(result["status"] == "pass" for result in results)


def failures(server: Server, report: Path, *options: str, key: str = "", tier: str = "core") -> tuple[list[str], int]:
    """The same of the bundled models."""
    return failed_and_passed(results_of(server, report, *BUNDLED, *options, key=key, tier=tier))


def test_no_required_check_fails(demo_server: Server, tmp_path: Path) -> None:
    failed, num_passed = failures(demo_server, tmp_path / "report.json")
    assert not failed, "\n".join(failed)
    assert num_passed >= 250


def test_no_required_check_fails_behind_a_key(key_server: Server, tmp_path: Path) -> None:
    """The groups that keys may change; what a model answers does not depend on them."""
    groups = [option for group in ("models", "http", "errors", "emb") for option in ("--only", f"{group}.*")]
    failed, num_passed = failures(key_server, tmp_path / "report.json", *groups, key=KEYS[1])
    assert not failed, "\n".join(failed)
    assert num_passed >= 40


def test_no_check_of_tools_fails(demo_server: Server, tmp_path: Path) -> None:
    failed, num_passed = failures(demo_server, tmp_path / "report.json", "--only", "tools.*", "--strict", tier="full")
    assert not failed, "\n".join(failed)
    assert num_passed >= 15


def test_responses_pass_whole(demo_server: Server, tmp_path: Path) -> None:
    failed, num_passed = failures(demo_server, tmp_path / "report.json", "--only", "resp.*", tier="full")
    assert not failed, "\n".join(failed)
    assert num_passed >= 26


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A decoder with random weights and one token per byte, behind a key.

    A text of it does not begin with a special token: an empty one, drawn once in 130 times, would fail checks that are
    right to expect some text.
    """
    path = save_checkpoint("qwen3", tmp_path_factory.mktemp("tiny") / "tiny")
    for name, changes in (
        ("config.json", {"max_position_embeddings": TINY_CONTEXT}),
        ("tokenizer_config.json", {"model_max_length": TINY_CONTEXT}),
        ("generation_config.json", {"begin_suppress_tokens": list(range(len(SPECIAL)))}),
    ):
        (path / name).write_text(json.dumps({**json.loads((path / name).read_text()), **changes}))
    with running(f"tiny={path}", "--chat-template", "chatml", "--api-key", KEYS[0]) as server:
        yield server


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/conformance.md, without its head."""
    section = DOCUMENT.read_text("utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [re.split(r" *\| *", line.strip("| ")) for line in section.splitlines() if line.startswith("|")][2:]


def assert_documented(results: list[dict[str, Any]], heading: str) -> None:
    """No required check fails, and each skipped one is in one row of the document with its reason."""
    failed, _ = failed_and_passed(results)
    assert not failed, "\n".join(failed)
    skipped = [result for result in results if result["status"] == "skip"]
    rows = [(pattern.strip("`"), int(number), reason) for pattern, number, reason in rows_of(heading)]
    for pattern, number, reason in rows:
        found = [result for result in skipped if fnmatch.fnmatchcase(result["id"], pattern)]
        assert len(found) == number, f"{pattern}: {[result['id'] for result in found]}"
        assert {result["reason"] for result in found} == {reason}
    assert len(skipped) == sum(number for _, number, _ in rows), [result["id"] for result in skipped]


def assert_counted(results: list[dict[str, Any]], name: str) -> None:
    """The document's first table has the figures of this run."""
    figures = {row[0]: tuple(map(int, row[1:])) for row in rows_of("Results")}
    statuses = [result["status"] for result in results]
    assert figures[name] == (statuses.count("pass"), statuses.count("fail"), statuses.count("skip"))


def test_no_required_check_fails_on_random_weights(tiny_server: Server, tmp_path: Path) -> None:
    results = results_of(tiny_server, tmp_path / "report.json", *TINY, "--strict", key=KEYS[0])
    assert_documented(results, "Skipped on random weights")


@pytest.mark.slow
def test_the_whole_program_on_random_weights(tiny_server: Server, tmp_path: Path) -> None:
    results = results_of(tiny_server, tmp_path / "report.json", *TINY, "--strict", key=KEYS[0], tier="full")
    assert_documented(results, "Skipped on random weights")
    assert_counted(results, "random weights")


@pytest.mark.slow
def test_the_whole_program_on_the_bundled_models(key_server: Server, tmp_path: Path) -> None:
    results = results_of(key_server, tmp_path / "report.json", *BUNDLED, "--strict", key=KEYS[1], tier="full")
    assert_documented(results, "Skipped on the bundled models")
    assert_counted(results, "bundled models")
