"""Absurd numbers in config.json are refused by their key before anything is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from langport.errors import CheckpointError
from langport.models.limits import check_config, check_modules

FILE = Path("/model/config.json")
SANE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 5120,
    "intermediate_size": 25_600,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 10_485_760,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
    "n_inner": None,
    "sliding_window": None,
}


def test_what_models_say_passes() -> None:
    check_config(SANE, FILE)
    check_config({}, FILE)
    check_config(SANE | {"max_position_embeddings": -1, "num_experts": 0, "intermediate_size": [64, 128]}, FILE)
    check_config(SANE | {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 4}}, FILE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", -1),
        ("vocab_size", 1e300),
        ("vocab_size", 10**9),
        ("hidden_size", 0),
        ("hidden_size", 2**62),
        ("num_attention_heads", 0),
        ("num_attention_heads", "4"),
        ("num_attention_heads", 4.5),
        ("num_attention_heads", True),
        ("num_attention_heads", None),
        ("num_key_value_heads", -2),
        ("head_dim", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", None),
        ("n_layer", 10**5),
        ("decoder_layers", 0),
        ("intermediate_size", -96),
        ("n_inner", 10**15),
        ("num_experts", 10**7),
        ("max_position_embeddings", 10**12),
        ("n_positions", 1e308),
        ("rms_norm_eps", None),
        ("layer_norm_eps", "small"),
        ("layer_norm_epsilon", float("nan")),
        ("rope_theta", 0),
        ("rotary_pct", -1),
        ("rope_parameters", [1]),
        ("rope_scaling", "linear"),
    ],
)
def test_what_no_model_says_is_named(key: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_config(SANE | {key: value}, FILE)
    assert str(caught.value).startswith(f"{FILE} says that {key} is {value!r}"[:60])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_parameters": {"factor": -1}}, "rope_parameters.factor"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 0}}}, "rope_parameters.sliding_attention.rope_theta"),
        ({"vocab_size": "x" * 10_000}, "..."),
    ],
)
def test_where_it_is_found(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_config(SANE | config, FILE)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300


def test_experts_of_all_layers_together() -> None:
    check_modules(SANE | {"num_experts": 384}, FILE)
    with pytest.raises(CheckpointError, match=r"config\.json describes 4000000 experts"):
        check_modules(SANE | {"num_hidden_layers": 2000, "num_experts": 2000}, FILE)
