"""What a model tells the scheduler about its windows follows from what its layers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langport.models import cohere, gemma, llama, mixtral, phi3, qwen3_moe, smollm3
from langport.models.base import DecoderModel, widest
from langport.models.gpt_neo import GPTNeo
from langport.models.starcoder2 import Starcoder2

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 24,
}
MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "norm_topk_prob": True}
NEO = {"vocab_size": 64, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 64}

CASES: list[tuple[type[DecoderModel], dict[str, Any], int | None]] = [
    (llama.Llama, SIZES, None),
    (llama.Mistral, SIZES, 24),
    (llama.Mistral, SIZES | {"sliding_window": None}, None),
    (llama.Qwen2, SIZES | {"use_sliding_window": True, "max_window_layers": 2}, None),
    (llama.Qwen2, SIZES | {"use_sliding_window": True, "max_window_layers": 0}, 24),
    (mixtral.Mixtral, SIZES, 24),
    (phi3.Phi3, SIZES, 24),
    (qwen3_moe.Qwen3MoE, SIZES | MOE | {"use_sliding_window": True}, 24),
    (smollm3.SmolLM3, SIZES | {"use_sliding_window": True}, None),
    (Starcoder2, SIZES, 24),
    (gemma.Gemma2, SIZES, None),
    (cohere.Cohere2, SIZES, None),
    (GPTNeo, NEO | {"attention_types": [[["global", "local"], 2]]}, None),
    (GPTNeo, NEO | {"attention_types": [[["local"], 4]], "window_size": 16}, 16),
]


@pytest.mark.parametrize(("family", "config", "expected"), CASES)
def test_the_widest_window_is_that_of_the_layers(
    family: type[DecoderModel], config: dict[str, Any], expected: int | None
) -> None:
    with torch.device("meta"):
        model = family(config)
    windows = [module.window for module in model.modules() if "window" in vars(module)]
    assert len(windows) == 4
    assert model.widest_window == widest(windows) == expected


def test_one_layer_without_a_window_keeps_everything() -> None:
    assert widest([4, 8]) == 8
    assert widest([4, None]) is None
    assert widest([]) is None
