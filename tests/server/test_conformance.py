"""OpenAI's published API, checked by the conformance program against the bundled models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import KEYS
from tests.server.process import PATIENCE_S, Server, clean_environment
from tests.server.test_models import CHAT, EMBED

PROGRAM = Path(__file__).parent.parent / "conformance" / "conformance.py"


def failures(server: Server, report: Path, *options: str, key: str = "", tier: str = "core") -> tuple[list[str], int]:
    """The required checks that failed, and how many passed."""
    models = ["--chat-model", CHAT, "--completion-model", CHAT, "--embedding-model", EMBED]
    command = [sys.executable, PROGRAM, "--base-url", f"{server.url}/v1", *models, "--tier", tier, *options]
    run = subprocess.run(
        [*command, "--json", report],
        env=clean_environment(OPENAI_API_KEY=key),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert report.exists(), run.stdout + run.stderr
    results = json.loads(report.read_text())["results"]
    failed = [f"{r['id']}: {r['reason']}" for r in results if r["status"] == "fail" and r["required"]]
    assert run.returncode == bool(failed)
    return failed, sum(result["status"] == "pass" for result in results)


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
