"""Ranks of prompt tokens against transformers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from langport.types import GenerateRequest, SamplingParams
from tests.engine.inprocess import Reference, load, run


def test_ranks_are_those_of_the_logits(checkpoint: Callable[[str], Path]) -> None:
    prompt = [(7 * i) % 250 + 3 for i in range(100)]  # more than the rows that are scored at once
    with torch.inference_mode():
        logits = Reference("llama", checkpoint("llama")).model(torch.tensor([prompt])).logits[0]
    expected = [int((logits[i] > logits[i, token]).sum()) + 1 for i, token in enumerate(prompt[1:])]

    sampling = SamplingParams(max_tokens=0, prompt_logprobs=384, ranks_prompt=True)
    for budget in (512, 40):
        core = load(checkpoint("llama"), max_num_batched_tokens=budget, max_num_seqs=4)
        first, *entries = run(core, [GenerateRequest("r", prompt, sampling)])["r", 0].prompt_logprobs
        assert first is None
        assert [entry.rank for entry in entries if entry] == expected
        assert all(entry and entry.rank and entry.top[entry.rank - 1][0] == entry.token_id for entry in entries)


def test_ranks_are_not_computed_unasked(checkpoint: Callable[[str], Path]) -> None:
    sampling = SamplingParams(max_tokens=1, logprobs=1, prompt_logprobs=1)
    stream = run(load(checkpoint("llama")), [GenerateRequest("r", [5, 6, 7], sampling)])["r", 0]
    assert [entry.rank for entry in [*stream.prompt_logprobs, *stream.logprobs] if entry] == [None] * 3
