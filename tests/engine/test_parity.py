"""The engine against transformers on the same weights: greedy tokens, log-probabilities, vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import DECODERS, ENCODER_DECODERS, ENCODERS, save_checkpoint
from tests.engine.inprocess import Reference, embed, load, mean_pooled, run

PROMPTS = [[5, 6, 7, 8, 9], [20, 21] * 30, [100], list(range(40, 170))]
"""Shorter and longer than the token budget below, so some are computed in pieces beside others that decode."""
BUDGET = 48


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_greedy_tokens_and_logprobs_equal_transformers(family: str, checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint(family)
    core = load(path, max_num_batched_tokens=BUDGET, max_num_seqs=8)
    reference = Reference(family, path)
    scores_prompts = 0 if family in DECODERS else None
    sampling = SamplingParams(max_tokens=20, temperature=0, logprobs=2, prompt_logprobs=scores_prompts)

    streams = run(core, [GenerateRequest(str(i), prompt, sampling) for i, prompt in enumerate(PROMPTS)])

    for i, prompt in enumerate(PROMPTS):
        stream = streams[str(i), 0]
        tokens, logprobs = reference.greedy(prompt, 20)
        assert stream.tokens == tokens
        np.testing.assert_allclose([entry.logprob for entry in stream.logprobs], logprobs, atol=1e-3)
        if family in DECODERS:
            found = [entry.logprob for entry in stream.prompt_logprobs if entry is not None]
            assert stream.prompt_logprobs[0] is None
            np.testing.assert_allclose(found, reference.prompt_logprobs(prompt), atol=1e-3)


@pytest.mark.parametrize("family", ENCODERS)
def test_mean_pooled_vectors_equal_transformers(family: str, checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint(family)
    inputs = [[5, 6, 7], list(range(3, 100)), [9], [30] * 11]

    vectors = embed(load(path, max_num_batched_tokens=128), inputs)

    for tokens, vector in zip(inputs, vectors, strict=True):
        expected = mean_pooled(path, tokens)
        cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
        assert cosine > 0.9999
        np.testing.assert_allclose(vector, expected, atol=1e-4)


def test_a_sharded_checkpoint_gives_the_same_tokens(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    sharded = save_checkpoint("llama", tmp_path, shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    request = GenerateRequest("r", PROMPTS[0], SamplingParams(max_tokens=12, temperature=0))

    assert run(load(sharded), [request]) == run(load(checkpoint("llama")), [request])


def test_bfloat16_stays_near_float32(checkpoint: Callable[[str], Path]) -> None:
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    request = GenerateRequest("r", PROMPTS[3], sampling)
    scores = {}
    for dtype in ("float32", "bfloat16"):
        stream = run(load(checkpoint("qwen3"), dtype=dtype), [request])["r", 0]
        scores[dtype] = [entry.logprob for entry in stream.prompt_logprobs if entry is not None]
        assert stream.finish_reason == "length"
        assert stream.tokens == []
    difference = np.abs(np.subtract(scores["float32"], scores["bfloat16"]))
    assert 0 < difference.mean() < 0.05
