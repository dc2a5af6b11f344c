"""The tiny tokenizers of `text_kinds`, saved as checkpoint directories."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_kinds import KINDS, save


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: save(root / name, *build()) for name, build in KINDS.items()}
