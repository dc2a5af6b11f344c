"""How many blocks a cache gets, and what is said when one sequence does not fit."""

from __future__ import annotations

import re

import pytest

from langport.engine.memory import BLOCK_SIZE, TRIM_INTERVAL_S, HeapTrimmer, choose_num_blocks
from langport.errors import CheckpointError

BYTES_PER_TOKEN = 1024


def chosen(num_blocks: int, *, max_model_len: int, contexts: int = 1, window_blocks: int | None = None) -> int:
    """With a budget of `num_blocks`, without the null block."""
    usable = choose_num_blocks(
        BYTES_PER_TOKEN,
        max_model_len=max_model_len,
        contexts=contexts,
        window_blocks=window_blocks,
        max_num_seqs=4,
        budget_bytes=num_blocks * BLOCK_SIZE * BYTES_PER_TOKEN,
        explicit=True,
    )
    return usable - 1


def test_it_is_what_the_sequences_need_or_the_budget_allows() -> None:
    assert chosen(1000, max_model_len=100) == 4 * 7
    assert chosen(20, max_model_len=100) == 20
    assert chosen(1000, max_model_len=100, contexts=2) == 4 * 14


def test_with_windows_a_sequence_needs_no_more_than_they_cover() -> None:
    assert chosen(5, max_model_len=10_000, window_blocks=5) == 5
    assert chosen(1000, max_model_len=10_000, window_blocks=5) == 20
    assert chosen(1000, max_model_len=32, window_blocks=5) == 8


@pytest.mark.parametrize(("contexts", "window_blocks"), [(1, None), (2, None), (1, 9)])
@pytest.mark.parametrize("num_blocks", [2, 3, 5])
def test_the_length_that_the_refusal_names_does_fit(num_blocks: int, contexts: int, window_blocks: int | None) -> None:
    with pytest.raises(CheckpointError, match="one sequence of 300 tokens needs") as refusal:
        chosen(num_blocks, max_model_len=300, contexts=contexts, window_blocks=window_blocks)
    named = re.search("--max-model-len ([0-9]+)", str(refusal.value))
    assert named
    assert chosen(num_blocks, max_model_len=int(named[1]), contexts=contexts, window_blocks=window_blocks) <= num_blocks


def test_where_nothing_fits_no_length_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"allows 0\.0 MiB; give more with --kv-cache-memory"):
        chosen(0, max_model_len=300)


def test_memory_is_given_back_now_and_then() -> None:
    now = 100.0
    heap = HeapTrimmer(clock=lambda: now)
    calls: list[int] = []
    heap._trim = lambda pad: calls.append(pad) or 1
    assert not heap.trim()
    now += TRIM_INTERVAL_S
    assert heap.trim()
    assert not heap.trim()
    now += TRIM_INTERVAL_S
    assert heap.trim()
    assert calls == [0, 0]
    heap._trim = None  # another C library
    now += TRIM_INTERVAL_S
    assert not heap.trim()
