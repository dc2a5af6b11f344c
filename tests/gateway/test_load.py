"""Short runs of the load programs in benchmarks/, which end with 0 only when every answer is as it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.server.process import PATIENCE_S, clean_environment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / program), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_thousand_streams_at_once_come_whole_and_in_order() -> None:
    found = run("streams.py", "--streams", "1000", "--rate", "1", "--seconds", "3")
    assert found["delay ms, through the gateway"]["events"] == 3000


def test_servers_that_are_killed_in_turns_lose_nothing_that_had_not_begun() -> None:
    found = run("kills.py", "--seconds", "5", "--clients", "12", "--answer-seconds", "0.5")
    assert found["lost"] == 0
    assert found["served_by"].keys() == {"server-0", "server-1"}
