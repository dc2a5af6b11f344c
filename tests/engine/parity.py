"""Any decoder against transformers on the same random weights: batched, in pieces, and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import byte_tokenizer
from tests.engine.inprocess import load, run

PROMPTS = [[5, 6, 7, 8, 9], [20, 21] * 30, [100], list(range(40, 170))]
"""Shorter and longer than the token budget below, so some are computed in pieces beside others that decode."""
BUDGET = 48
MAX_TOKENS = 16


def save_random(config: Any, path: Path, *, dtype: str = "float32") -> Path:
    """A checkpoint with weights spread so widely that greedy choices are clear."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def assert_equals_transformers(path: Path) -> None:
    """Greedy tokens are the same, log-probabilities within 1e-3: batched with a small budget, and alone."""
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    requests = [GenerateRequest(str(i), prompt, sampling) for i, prompt in enumerate(PROMPTS)]
    together = run(load(path, max_num_batched_tokens=BUDGET, max_num_seqs=8), requests)
    alone = run(load(path), requests[-1:])
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    for streams in (together, alone):
        for (name, _), stream in streams.items():
            prompt = PROMPTS[int(name)]
            text = prompt + stream.tokens
            scores = scores_of(model, text)
            assert stream.tokens == scores.argmax(-1)[len(prompt) - 1 : -1].tolist()
            found = [entry.logprob for entry in [*stream.prompt_logprobs, *stream.logprobs] if entry is not None]
            expected = [scores[i, token].item() for i, token in enumerate(text[1:])]
            np.testing.assert_allclose(found, expected, atol=1e-3)


@torch.inference_mode()
def scores_of(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities (num_tokens, vocab_size) of what follows each token.

    One forward pass over prompt and answer: each greedy token must be the likeliest after those before it.
    """
    scores: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)
    return scores
