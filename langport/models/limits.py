"""Numbers of a config.json that no model has, refused before anything is built or allocated from them.

Only the fields that families here and transformers' own models read by these names; what is absent or null keeps its
default, and what a list gives layer by layer is the model's own business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from langport.errors import CheckpointError

MOST: dict[str, int] = {
    **dict.fromkeys(("vocab_size",), 2**24),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "n_embed", "dim", "word_embed_proj_dim"), 2**20),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "d_ff", "n_inner", "ffn_hidden_size"), 2**24),
    **dict.fromkeys(("ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 2**24),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 2**14),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2**14),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2**14),
    **dict.fromkeys(("head_dim", "d_kv"), 2**14),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2**11),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2**11),
}
"""Whole numbers from 1 to this, many times what the largest models have."""
NEVER_NULL = ("num_hidden_layers", "num_attention_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")
"""Also 0, where a model has none."""
MOST_EXPERTS = 2**20
MOST_MODULES = 2**16
"""Experts of all layers in a family that holds each of them as modules of its own."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
"""Some models say -1 or 0 for no limit."""
MOST_POSITIONS = 2**31
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
ROTARY = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct", "factor")
"""Above 0, at the top or in rope_parameters."""


def check_config(
    config: dict[str, Any], file: Path, advice: str = "Take config.json from the original checkpoint."
) -> None:
    """Raises: CheckpointError naming the first key whose value is absurd, and what it may be."""
    for key, value, expected in _problems(config):
        shown = repr(value)
        raise CheckpointError(
            f"{file} says that {key} is {shown[:60]}{'...' if len(shown) > 60 else ''}; it must be {expected}. {advice}"
        )


def check_modules(config: dict[str, Any], file: Path) -> None:
    """Raises: CheckpointError when the experts are so many that building the model would take for ever."""
    modules = _largest(config, LAYERS) * _largest(config, EXPERTS[:3])
    if modules > MOST_MODULES:
        raise CheckpointError(
            f"{file} describes {modules} experts in all layers together; the most are {MOST_MODULES}."
        )


def _problems(config: dict[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Key, value and what is right."""
    for key, most in MOST.items():
        yield from _whole(config, key, 1, most)
    for key in EXPERTS:
        yield from _whole(config, key, 0, MOST_EXPERTS)
    for key in POSITIONS:
        value = config.get(key)
        if isinstance(value, int | float) and not value <= MOST_POSITIONS:
            yield key, value, f"at most {MOST_POSITIONS}"
    for key in EPSILONS:
        if key in config and not _is_number(config[key], least=0):
            yield key, config[key], "a number, 0 or more"
    yield from _rotary(config, "")
    for name in ("rope_parameters", "rope_scaling"):
        settings = config.get(name)
        if settings is not None and not isinstance(settings, dict):
            yield name, settings, "an object or null"
        elif settings is not None:
            yield from _rotary(settings, f"{name}.")
            for part, inner in settings.items():
                if isinstance(inner, dict):  # one for each type of layer
                    yield from _rotary(inner, f"{name}.{part}.")


def _whole(config: dict[str, Any], key: str, least: int, most: int) -> Iterator[tuple[str, object, str]]:
    value = config.get(key)
    if isinstance(value, list) or (value is None and not (key in config and key in NEVER_NULL)):
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        yield key, value, f"a whole number from {least} to {most}"


def _largest(config: dict[str, Any], keys: Iterable[str]) -> int:
    return max((value for key in keys if isinstance(value := config.get(key), int)), default=0)


def _rotary(settings: dict[str, Any], prefix: str) -> Iterator[tuple[str, object, str]]:
    for key in ROTARY:
        value = settings.get(key)
        if value is not None and not (_is_number(value, least=0) and value > 0):
            yield prefix + key, value, "a number above 0"


def _is_number(value: object, *, least: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= least  # type: ignore[arg-type, operator]
