"""A tiny model that can go on for as long as a test needs it to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import save_checkpoint
from tests.server.process import Server, running

ENDLESS = 200_000
"""Tokens of context: more than any machine generates while a test is patient."""


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose context is not filled in minutes."""
    path = save_checkpoint("llama", tmp_path_factory.mktemp("endless") / "endless")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": ENDLESS}))
    return path


@pytest.fixture(scope="session")
def narrow_server(endless_model: Path) -> Iterator[Server]:
    """One model with a place for one sequence."""
    with running(str(endless_model), "--max-num-seqs", "1") as server:
        yield server
