"""The founding document's curl call, run by a shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.server.founding import snippet
from tests.server.process import DONE, PATIENCE_S, Server, clean_environment, parsed


def test_curl_streams_an_answer(demo_server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = snippet("shell", "curl", demo_server.port)
    assert '"stream": true' in command
    assert '"top_p": 0.5' in command

    run = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=clean_environment(), timeout=PATIENCE_S
    )

    assert run.returncode == 0, run.stderr
    *chunks, last = parsed(iter(run.stdout.splitlines()))
    assert last == DONE
    assert len({(chunk["id"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert "LangPort" in text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
