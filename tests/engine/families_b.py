"""Tiny configurations of the older families (GPT-2 to Falcon), in the variants that occur in the wild."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import models as families

from tests.checkpoints import COMMON

GPT_SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512} | COMMON
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
} | COMMON


def _gpt2(**extra: Any) -> Any:
    return families.gpt2.GPT2Config(**GPT_SIZES | extra)


def _gpt_bigcode(**extra: Any) -> Any:
    return families.gpt_bigcode.GPTBigCodeConfig(**GPT_SIZES | extra)


def _gptj(**extra: Any) -> Any:
    return families.gptj.GPTJConfig(**GPT_SIZES | {"rotary_dim": 8} | extra)


def _gpt_neo(**extra: Any) -> Any:
    sizes = {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 512} | COMMON
    types = {"attention_types": [[["local", "global"], 1], [["local"], 1]], "window_size": 16}
    return families.gpt_neo.GPTNeoConfig(**sizes | types | extra)


def _gpt_neox(**extra: Any) -> Any:
    return families.gpt_neox.GPTNeoXConfig(**SIZES | {"intermediate_size": 96} | extra)


def _opt(**extra: Any) -> Any:
    return families.opt.OPTConfig(**SIZES | {"ffn_dim": 96} | extra)


def _bloom(**extra: Any) -> Any:
    return families.bloom.BloomConfig(**{"hidden_size": 64, "n_layer": 3, "n_head": 4} | COMMON | extra)


def _falcon(**extra: Any) -> Any:
    return families.falcon.FalconConfig(**SIZES | extra)


def _codegen(**extra: Any) -> Any:
    return families.codegen.CodeGenConfig(**GPT_SIZES | {"n_head": 8, "rotary_dim": 4} | extra)


def _mpt(**extra: Any) -> Any:
    return families.mpt.MptConfig(**{"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512} | COMMON | extra)


def _xglm(**extra: Any) -> Any:
    sizes = {"d_model": 64, "ffn_dim": 96, "num_layers": 3, "attention_heads": 4, "max_position_embeddings": 512}
    return families.xglm.XGLMConfig(**sizes | COMMON | extra)


LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2-untied-scaled-by-layer": lambda: _gpt2(
        tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, n_inner=80, activation_function="relu"
    ),
    "gpt2-unscaled": lambda: _gpt2(scale_attn_weights=False, layer_norm_epsilon=1e-3),
    "gpt_bigcode": lambda: _gpt_bigcode(),
    "gpt_bigcode-every-head": lambda: _gpt_bigcode(multi_query=False, tie_word_embeddings=False),
    "gptj": lambda: _gptj(),
    "gptj-whole-head-tied": lambda: _gptj(rotary_dim=16, tie_word_embeddings=True, n_inner=80),
    "codegen": lambda: _codegen(),
    "codegen-tied": lambda: _codegen(n_head=4, rotary_dim=16, tie_word_embeddings=True),
    "gpt_neo": lambda: _gpt_neo(),
    "gpt_neo-untied": lambda: _gpt_neo(
        attention_types=[[["global", "local"], 1], [["global"], 1]], tie_word_embeddings=False, intermediate_size=80
    ),
    "gpt_neox": lambda: _gpt_neox(),
    "gpt_neox-sequential": lambda: _gpt_neox(
        use_parallel_residual=False, tie_word_embeddings=True, attention_bias=False, hidden_act="gelu_fast"
    ),
    "gpt_neox-whole-head-scaled": lambda: _gpt_neox(rope_parameters=LINEAR_ROPE | {"partial_rotary_factor": 1.0}),
    "opt": lambda: _opt(),
    "opt-350m": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=32),
    "opt-galactica": lambda: _opt(enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
    "opt-before-4.20": lambda: _opt(_remove_final_layer_norm=True, tie_word_embeddings=False),
    "bloom": lambda: _bloom(),
    "bloom-six-heads": lambda: _bloom(hidden_size=96, n_head=6, tie_word_embeddings=False),
    "bloom-residual-after-norm": lambda: _bloom(apply_residual_connection_post_layernorm=True),
    "falcon-7b": lambda: _falcon(),
    "falcon-40b": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2, tie_word_embeddings=False),
    "falcon-11b": lambda: _falcon(
        new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, ffn_hidden_size=80
    ),
    "falcon-rw": lambda: _falcon(num_attention_heads=16, alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "falcon-alibi-multi-query": lambda: _falcon(
        hidden_size=96, num_attention_heads=6, alibi=True, activation="relu", bias=True
    ),
    "falcon-new-alibi": lambda: _falcon(alibi=True, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-scaled-sequential": lambda: _falcon(rope_parameters=LINEAR_ROPE, parallel_attn=False),
    "mpt": lambda: _mpt(),
    "mpt-six-heads-clipped": lambda: _mpt(
        d_model=96, n_heads=6, attn_config={"clip_qkv": 1.0, "softmax_scale": 0.2}, tie_word_embeddings=False
    ),
    "xglm": lambda: _xglm(),
    "xglm-unscaled-untied": lambda: _xglm(
        scale_embedding=False, tie_word_embeddings=False, activation_function="relu", pad_token_id=30
    ),
}
