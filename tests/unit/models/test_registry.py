"""Models are built as shapes, without weights, and soon."""

from __future__ import annotations

import subprocess
import sys

from langport.settings.tree import BUNDLED_MODELS_PATH

BUILD = """
import sys
from pathlib import Path
from langport.models.checkpoint import read_checkpoint
from langport.models.registry import build_model
for path in sys.argv[1:]:
    model = build_model(read_checkpoint(Path(path)))
    assert all(parameter.is_meta for parameter in model.parameters())
print(*(name for name in ("torch", "torch._dynamo", "transformers") if name in sys.modules))
"""


def test_neither_torch_s_compiler_nor_transformers_is_imported_to_build_a_model() -> None:
    """Each takes more than a second, in every engine's process."""
    paths = sorted(path for path in BUNDLED_MODELS_PATH.iterdir() if path.is_dir())
    assert len(paths) == 3

    built = subprocess.run([sys.executable, "-c", BUILD, *paths], capture_output=True, text=True)

    assert built.stdout.split() == ["torch"], built.stderr
