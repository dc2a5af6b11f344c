"""Rotary tables against transformers' own, for every kind of scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as apply_interleaved
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as apply_halves

from langport.errors import CheckpointError
from langport.layers.rotary import RotaryEmbedding, rope_parameters

SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 16 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "attention_factor": 1.25,
        "original_max_position_embeddings": 128,
    },
}


def both(scaling: dict[str, Any], length: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Cosine and sine of positions 0 to `length`: ours and transformers'."""
    config = LlamaConfig(**SHAPE, rope_parameters=dict(scaling))
    positions = torch.arange(length)
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    written = SHAPE | {"rope_scaling": scaling, "rope_theta": 10000.0}
    ours = RotaryEmbedding(rope_parameters(written), 32, length, "cpu").tables(positions, torch.float32)
    return ours, theirs


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_transformers_up_to_the_context(name: str) -> None:
    ours, theirs = both(SCALINGS[name], 256)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our[:, 0], their[0], atol=1e-5, rtol=0)


def test_a_saved_config_reads_as_the_older_spelling_does() -> None:
    for scaling in SCALINGS.values():
        older = rope_parameters(SHAPE | {"rope_scaling": scaling, "rope_theta": 10000.0})
        newer = rope_parameters(LlamaConfig(**SHAPE, rope_parameters=dict(scaling)).to_dict())
        older.pop("type", None)
        newer.pop("type", None)
        assert newer == older


def test_dynamic_scaling_turns_each_position_as_a_generated_token_is_turned() -> None:
    config = LlamaConfig(**SHAPE, rope_parameters=SCALINGS["dynamic"] | {"rope_theta": 10000.0})
    ours = RotaryEmbedding(rope_parameters(config.to_dict()), 32, 600, "cpu")
    for position in (255, 256, 300, 599):
        theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[position]]))
        for our, their in zip(ours.tables(torch.tensor([position]), torch.float32), theirs, strict=True):
            torch.testing.assert_close(our[0, 0], their[0, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("stated", [{}, {"factor": 8.0}, {"attention_factor": 1.5}])
def test_longrope_chooses_by_the_length_of_the_sequence(length: int, stated: dict[str, float]) -> None:
    config = Phi3Config(
        **SHAPE, pad_token_id=0, original_max_position_embeddings=64, rope_parameters={**LONG, **stated}
    )
    positions = torch.arange(length)
    theirs = Phi3RotaryEmbedding(config)(torch.zeros(1), positions[None])
    rotary = RotaryEmbedding(rope_parameters(config.to_dict()), 32, 256, "cpu")
    assert rotary.trained_length == 64
    ours = rotary.tables(positions, torch.float32, torch.full((length,), length))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our[:, 0], their[0], atol=1e-5, rtol=0)
    # The same position in sequences of both kinds, in one step.
    last = torch.tensor([length - 1] * 2)
    _, alone = rotary.tables(last[:1], torch.float32, torch.tensor([200]))
    _, mixed = rotary.tables(last, torch.float32, torch.tensor([64, 200]))
    assert torch.equal(mixed[1], alone[0])


def test_longrope_within_the_trained_length_has_no_long_table() -> None:
    parameters = rope_parameters(SHAPE | {"rope_scaling": LONG, "original_max_position_embeddings": 64})
    rotary = RotaryEmbedding(parameters, 32, 64, "cpu")
    assert rotary.trained_length is None
    full = RotaryEmbedding(parameters, 32, 256, "cpu")
    positions = torch.arange(64)
    lengths = torch.full((64,), 64)
    assert torch.equal(rotary.tables(positions, torch.float32)[0], full.tables(positions, torch.float32, lengths)[0])


def test_interleaved_pairs_and_partial_heads_equal_transformers() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 32)
    positions = torch.arange(5)
    parameters = rope_parameters(SHAPE)
    rotary = RotaryEmbedding(parameters, 32, 16, "cpu", is_interleaved=True)
    cos, sin = rotary.tables(positions, torch.float32)
    their, _ = apply_interleaved(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None, :, 0], sin[None, :, 0])
    torch.testing.assert_close(rotary.apply(x, (cos, sin)), their[0].transpose(0, 1))
    torch.testing.assert_close(cos[:, 0, ::2], cos[:, 0, 1::2])

    partial = RotaryEmbedding(parameters | {"partial_rotary_factor": 0.25}, 32, 16, "cpu")
    cos, sin = partial.tables(positions, torch.float32)
    assert cos.shape == (5, 1, 8)
    their, _ = apply_halves(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None, :, 0], sin[None, :, 0])
    torch.testing.assert_close(partial.apply(x, (cos, sin)), their[0].transpose(0, 1))


def test_an_unknown_scaling_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="'spiral'"):
        RotaryEmbedding(rope_parameters(SHAPE | {"rope_scaling": {"type": "spiral"}}), 32, 16, "cpu")


def test_layer_types_have_their_own_parameters() -> None:
    nested = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_theta": 7.0}}
    full = rope_parameters(SHAPE | {"rope_parameters": nested}, "full_attention")
    assert (full["rope_type"], full["factor"]) == ("linear", 8.0)
    assert rope_parameters(SHAPE | {"rope_parameters": nested}, "sliding_attention")["rope_theta"] == 7.0
