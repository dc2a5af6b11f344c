"""Llama and its relatives against transformers on the same weights, in their variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.families_a import CONFIGS
from tests.engine.parity import assert_equals_transformers, save_random


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_and_logprobs_equal_transformers(name: str, tmp_path: Path) -> None:
    path = save_random(CONFIGS[name](), tmp_path)

    assert_equals_transformers(path)
