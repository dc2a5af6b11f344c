from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from langport.ops import native
from tests.checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny random checkpoint, written once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that are loaded in the test compute with torch's operators."""
    monkeypatch.setenv(native.VARIABLE, "torch")
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()
