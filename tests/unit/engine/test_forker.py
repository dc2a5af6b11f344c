"""What the processes of a server import before the first request: everything else would be waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from langport.settings.tree import BUNDLED_MODELS_PATH

SERVER = "import langport.server"
FORKER = "from langport.engine import forker; forker._import()"
ENGINE = f"""
from pathlib import Path
from langport.settings.tree import EngineSettings
from langport.engine.load import load_engine
from langport.engine.messages import Load
from langport.models.checkpoint import read_checkpoint
for path in sorted(Path({str(BUNDLED_MODELS_PATH)!r}).iterdir()):
    if path.is_dir():
        load_engine(read_checkpoint(path), Load("m", str(path), EngineSettings(device="cpu"), 0.1), lambda share: None)
"""
STORE = {"sqlalchemy", "alembic"}
EXTRAS = {"opentelemetry", "redis", "ray", "prometheus_client"}
ENGINE_FREE = {
    "transformers",
    "gguf",
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "pandas",
    "scipy",
    "uvicorn",
    "httptools",
}


@pytest.mark.parametrize(
    ("code", "needed", "not_needed"),
    [
        (SERVER, {"uvicorn", "tokenizers"}, STORE | EXTRAS | {"torch", "transformers", "gguf", "huggingface_hub"}),
        ("import langport.engine.forker", set(), {"torch", "numpy", "asyncio", "msgspec"}),
        (FORKER, {"torch"}, STORE | EXTRAS | ENGINE_FREE),
        (ENGINE, {"torch"}, STORE | EXTRAS | ENGINE_FREE),
    ],
    ids=["the server", "what starts the forking process", "the forking process", "an engine of a family of our own"],
)
def test_a_process_imports_what_it_needs(code: str, needed: set[str], not_needed: set[str]) -> None:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())

    assert needed <= loaded, done.stderr
    assert not not_needed & loaded


def test_what_was_imported_before_a_fork_is_no_garbage_to_look_for() -> None:
    code = f"import gc; {FORKER}; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
