"""Llama and its relatives against transformers on the same weights, in their variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from langport.types import GenerateRequest, SamplingParams
from tests.checkpoints import byte_tokenizer
from tests.engine.families_a import CONFIGS
from tests.engine.inprocess import load, run
from tests.engine.parity import PROMPTS, assert_equals_transformers, save_random


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_and_logprobs_equal_transformers(name: str, tmp_path: Path) -> None:
    path = save_random(CONFIGS[name](), tmp_path)

    assert_equals_transformers(path)


NEAR_BFLOAT16 = (
    *("llama-yarn", "mixtral", "gemma", "gemma2-tight-caps", "gemma3", "phi-qk-norm", "phi3", "starcoder2"),
    *("stablelm-qk-norm", "olmo2", "cohere-qk-norm", "cohere2", "granite", "smollm3"),
)


@pytest.mark.parametrize("name", NEAR_BFLOAT16)
def test_bfloat16_stays_near_float32(name: str, tmp_path: Path) -> None:
    path = save_random(CONFIGS[name](), tmp_path)
    sampling = SamplingParams(max_tokens=4, temperature=0, prompt_logprobs=0, ignore_eos=True)
    request = GenerateRequest("r", PROMPTS[3], sampling)
    scores = {}
    for dtype in ("float32", "bfloat16"):
        stream = run(load(path, dtype=dtype), [request])["r", 0]
        scores[dtype] = [entry.logprob for entry in stream.prompt_logprobs if entry is not None]
    difference = np.abs(np.subtract(scores["float32"], scores["bfloat16"]))
    assert 0 < difference.mean() < 0.15


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe-some-dense"])
def test_experts_stored_together_are_read_as_those_stored_apart(name: str, tmp_path: Path) -> None:
    apart = save_random(CONFIGS[name](), tmp_path / "apart")
    together = tmp_path / "together"
    AutoModelForCausalLM.from_pretrained(apart).save_pretrained(together, save_original_format=False)
    byte_tokenizer().save_pretrained(together)
    with safe_open(together / "model.safetensors", framework="pt") as tensors:
        assert "model.layers.1.mlp.experts.gate_up_proj" in tensors.keys()  # noqa: SIM118 - not a dict
    sampling = SamplingParams(max_tokens=8, temperature=0, logprobs=0, prompt_logprobs=0)
    request = GenerateRequest("r", PROMPTS[1], sampling)

    assert run(load(together), [request]) == run(load(apart), [request])
