"""Tiny configurations of Llama and its relatives, in the variants that occur in the wild."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import models as families

from tests.checkpoints import COMMON

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
} | COMMON
WINDOW = 24
MOE: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}


def _of(config_class: Any, **always: Any) -> Callable[..., Callable[[], Any]]:
    """Makes configurations of one class."""
    return lambda **extra: lambda: config_class(**SIZES | always | extra)


def _rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10000.0, **settings}


_llama = _of(families.llama.LlamaConfig)
_mistral = _of(families.mistral.MistralConfig, sliding_window=WINDOW)
_qwen2 = _of(families.qwen2.Qwen2Config)
_mixtral = _of(families.mixtral.MixtralConfig, num_local_experts=4)
_qwen3_moe = _of(families.qwen3_moe.Qwen3MoeConfig, **MOE)
_gemma = _of(families.gemma.GemmaConfig, head_dim=16)
_gemma2 = _of(families.gemma2.Gemma2Config, head_dim=32, sliding_window=WINDOW)
_gemma3 = _of(families.gemma3.Gemma3TextConfig, head_dim=32, sliding_window=WINDOW)
_phi = _of(families.phi.PhiConfig)
_phi3 = _of(families.phi3.Phi3Config)
_starcoder2 = _of(families.starcoder2.Starcoder2Config)
_stablelm = _of(families.stablelm.StableLmConfig)
_olmo2 = _of(families.olmo2.Olmo2Config)
_cohere = _of(families.cohere.CohereConfig)
_cohere2 = _of(families.cohere2.Cohere2Config, sliding_window=WINDOW)
_granite = _of(families.granite.GraniteConfig)
_smollm3 = _of(families.smollm3.SmolLM3Config)

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama-biases": _llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "llama-linear": _llama(rope_parameters=_rope("linear", factor=4.0)),
    "llama-dynamic": _llama(rope_parameters=_rope("dynamic", factor=4.0)),
    "llama-yarn": _llama(rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama-head-dim": _llama(head_dim=40, hidden_act="gelu", tie_word_embeddings=True),
    "mistral-no-window": _mistral(sliding_window=None, head_dim=24),
    "qwen2-window-above": _qwen2(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    "qwen2-yarn": _qwen2(rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "mixtral": _mixtral(),
    "mixtral-window": _mixtral(sliding_window=WINDOW, num_experts_per_tok=3, tie_word_embeddings=True),
    "qwen3-moe": _qwen3_moe(norm_topk_prob=True),
    "qwen3-moe-some-dense": _qwen3_moe(mlp_only_layers=[0], decoder_sparse_step=2, attention_bias=True),
    "qwen3-moe-window": _qwen3_moe(use_sliding_window=True, sliding_window=WINDOW),
    "gemma": _gemma(),
    "gemma-one-kv-head": _gemma(num_key_value_heads=1, hidden_act="gelu"),
    "gemma2": _gemma2(query_pre_attn_scalar=48),
    "gemma2-tight-caps": _gemma2(attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma2-no-caps": _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": _gemma3(sliding_window_pattern=3),
    "gemma3-stretched": _gemma3(
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "phi": _phi(num_key_value_heads=4),
    "phi-qk-norm": _phi(qk_layernorm=True, partial_rotary_factor=0.25),
    "phi3": _phi3(sliding_window=WINDOW),
    "phi3-longrope-short": _phi3(original_max_position_embeddings=256, rope_parameters=LONGROPE),
    "phi3-longrope-partial": _phi3(
        original_max_position_embeddings=256,
        rope_parameters=LONGROPE
        | {"partial_rotary_factor": 0.75, "short_factor": [1.5] * 6, "long_factor": [3.0] * 6, "factor": 4.0},
    ),
    "starcoder2": _starcoder2(),
    "starcoder2-window": _starcoder2(sliding_window=WINDOW, use_bias=False, tie_word_embeddings=False),
    "stablelm": _stablelm(),
    "stablelm-parallel": _stablelm(use_parallel_residual=True, use_qkv_bias=True, num_key_value_heads=4),
    "stablelm-qk-norm": _stablelm(qk_layernorm=True, use_parallel_residual=True),
    "olmo2": _olmo2(num_key_value_heads=4),
    "olmo2-grouped-biases": _olmo2(attention_bias=True, tie_word_embeddings=True),
    "cohere": _cohere(),
    "cohere-qk-norm": _cohere(use_qk_norm=True, attention_bias=True, logit_scale=0.8),
    "cohere2": _cohere2(logit_scale=0.25),
    "granite": _granite(
        embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.0156
    ),
    "granite-biases": _granite(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "smollm3": _smollm3(),
    "smollm3-window": _smollm3(
        use_sliding_window=True, sliding_window=WINDOW, no_rope_layers=[1, 0, 1, 0], tie_word_embeddings=False
    ),
}
