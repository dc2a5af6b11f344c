"""The older families: what a config.json leaves out is what transformers' configuration class fills in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import models as families

from langport.errors import CheckpointError
from langport.models import bloom, falcon, gpt2, gpt_neo, gpt_neox, gptj, mpt, opt, xglm
from langport.models.base import DecoderModel

GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 64}
USUAL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
NEO: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "num_layers": 24,
    "num_heads": 2,
    "max_position_embeddings": 64,
}
CASES: list[tuple[type[DecoderModel], Any, dict[str, Any]]] = [
    (gpt2.GPT2, families.gpt2.GPT2Config, GPT),
    (gpt2.GPTBigCode, families.gpt_bigcode.GPTBigCodeConfig, GPT),
    (gptj.GPTJ, families.gptj.GPTJConfig, GPT),
    (gptj.CodeGen, families.codegen.CodeGenConfig, GPT | {"n_head": 4, "rotary_dim": 32}),
    (gpt_neo.GPTNeo, families.gpt_neo.GPTNeoConfig, NEO),
    (gpt_neox.GPTNeoX, families.gpt_neox.GPTNeoXConfig, USUAL | {"intermediate_size": 96}),
    (opt.OPT, families.opt.OPTConfig, USUAL | {"ffn_dim": 96}),
    (bloom.Bloom, families.bloom.BloomConfig, {"vocab_size": 64, "hidden_size": 128, "n_layer": 2, "n_head": 2}),
    (falcon.Falcon, families.falcon.FalconConfig, USUAL),
    (
        falcon.Falcon,
        families.falcon.FalconConfig,
        USUAL | {"num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    (mpt.MPT, families.mpt.MptConfig, {"vocab_size": 64, "d_model": 128, "n_layers": 2, "n_heads": 2}),
    (
        xglm.XGLM,
        families.xglm.XGLMConfig,
        {"vocab_size": 64, "d_model": 128, "ffn_dim": 96, "num_layers": 2, "attention_heads": 2},
    ),
]


def built(family: type[DecoderModel], config: dict[str, Any]) -> DecoderModel:
    with torch.device("meta"):
        model = family(config)
    model.prepare("cpu", 32)
    return model


def settings(module: nn.Module) -> dict[str, object]:
    """The plain values that a module keeps."""
    plain = (bool, int, float, str, tuple, type(None))
    kept = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return kept | {"activation": getattr(module, "activation", None)}


def tables(model: DecoderModel) -> list[Tensor]:
    """What `prepare` computes from the config."""
    found: list[Tensor] = []
    falcons = vars(model.positions) if isinstance(model, falcon.Falcon) else {}
    for value in (*vars(model).values(), *falcons.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif hasattr(value, "tables"):
            found += value.tables(torch.arange(32), torch.float32)
    return found


@pytest.mark.parametrize(("family", "config_class", "minimal"), CASES)
def test_what_config_json_leaves_out_is_as_transformers_fills_it_in(
    family: type[DecoderModel], config_class: Any, minimal: dict[str, Any]
) -> None:
    short, whole = built(family, minimal), built(family, config_class(**minimal).to_dict())

    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (short, whole)]
    assert shapes[0] == shapes[1]
    assert short.cache_spec == whole.cache_spec
    for (name, one), (_, other) in zip(short.named_modules(), whole.named_modules(), strict=True):
        assert settings(one) == settings(other), name
    for one, other in zip(tables(short), tables(whole), strict=True):
        assert torch.equal(one, other)


def test_gpt_neox_in_the_spelling_of_transformers_4() -> None:
    minimal = USUAL | {"intermediate_size": 96}
    newer = {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2.0}
    older = {"rotary_emb_base": 500.0, "rotary_pct": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}

    one, other = (built(gpt_neox.GPTNeoX, minimal | config) for config in ({"rope_parameters": newer}, older))

    assert tables(one)[0].shape[-1] == 32
    assert torch.equal(tables(one)[0], tables(other)[0])


def test_bloom_in_the_spelling_of_its_first_configurations() -> None:
    usual = {"vocab_size": 64, "hidden_size": 96, "n_layer": 3, "n_head": 6}
    first = {"vocab_size": 64, "n_embed": 96, "num_hidden_layers": 3, "num_attention_heads": 6}

    assert built(bloom.Bloom, first).cache_spec == built(bloom.Bloom, usual).cache_spec


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (gpt2.GPT2, GPT | {"add_cross_attention": True}, "cross attention"),
        (gpt_neo.GPTNeo, NEO | {"num_layers": 3}, "must name 3 layers .* it names 24"),
        (gpt_neo.GPTNeo, NEO | {"num_layers": 1, "attention_types": [[["sparse"], 1]]}, "global or local.* sparse"),
        (mpt.MPT, CASES[10][2] | {"attn_config": {"qk_ln": True}}, "qk_ln True"),
        (mpt.MPT, CASES[10][2] | {"no_bias": False}, "without biases"),
    ],
)
def test_what_cannot_be_done_is_refused(family: type[DecoderModel], config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        built(family, config)
