"""OpenAI's published API, checked by the conformance program against the bundled models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KEYS
from tests.server.process import PATIENCE_S, Server, clean_environment
from tests.server.test_models import CHAT, EMBED

PROGRAM = Path(__file__).parent.parent / "conformance" / "conformance.py"


@pytest.mark.parametrize(("fixture", "key"), [("demo_server", None), ("key_server", KEYS[1])])
def test_no_required_check_fails(fixture: str, key: str | None, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: Server = request.getfixturevalue(fixture)
    report = tmp_path / "report.json"
    models = ["--chat-model", CHAT, "--completion-model", CHAT, "--embedding-model", EMBED]
    run = subprocess.run(
        [sys.executable, PROGRAM, "--base-url", f"{server.url}/v1", *models, "--tier", "core", "--json", report],
        env=clean_environment(OPENAI_API_KEY=key or ""),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert report.exists(), run.stdout + run.stderr
    results = json.loads(report.read_text())["results"]
    failures = [f"{r['id']}: {r['reason']}" for r in results if r["status"] == "fail" and r["required"]]
    assert not failures, "\n".join(failures)
    assert run.returncode == 0
    assert sum(result["status"] == "pass" for result in results) > 240
