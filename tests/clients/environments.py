"""Environments of other programs, each with packages of its own, in a folder that the Makefile fills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def python_of(name: str, command: str) -> Path:
    """The Python of the environment `name`, which `command` builds; skips or fails the test where there is none."""
    wanted = os.environ.get("LANGPORT_CLIENTS")
    folder = Path(wanted) if wanted else Path(__file__).parents[2] / ".venv-clients"
    python = folder / name / "bin" / "python"
    if python.exists():
        return python
    reason = f"no environment {name} in {folder}: run `{command}`"
    if wanted:
        pytest.fail(reason)
    pytest.skip(reason)
