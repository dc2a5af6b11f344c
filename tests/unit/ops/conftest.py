from __future__ import annotations

from collections.abc import Iterator

import pytest

from langport.ops import native
from langport.ops.native import Kernels


def here() -> list[str]:
    try:
        return native.levels_here()
    except native.NotBuilt:
        return []


@pytest.fixture(params=here())
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The library at one level; afterwards at the process's own again."""
    library = native.load_library()
    level = native.choose_level(library, request.param)
    assert level is not None
    level.set_threads(1)
    yield level
    level.set_threads(1)
    own = native.kernels()
    native.choose_level(library, own.level if own else None)
