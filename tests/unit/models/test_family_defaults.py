"""A config.json may leave out what transformers' configuration class fills in, and may be in the older spelling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import models as families

from langport.models import cohere, gemma, granite, llama, mixtral, olmo2, phi, phi3, qwen3_moe, smollm3, stablelm
from langport.models.base import Model
from langport.models.starcoder2 import Starcoder2

MINIMAL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 48,
    "num_hidden_layers": 13,
    "num_attention_heads": 32,
}
CLASSES: list[tuple[type[llama.Llama], Any]] = [
    (llama.Llama, families.llama.LlamaConfig),
    (llama.Mistral, families.mistral.MistralConfig),
    (llama.Qwen2, families.qwen2.Qwen2Config),
    (llama.Qwen3, families.qwen3.Qwen3Config),
    (cohere.Cohere, families.cohere.CohereConfig),
    (cohere.Cohere2, families.cohere2.Cohere2Config),
    (gemma.Gemma, families.gemma.GemmaConfig),
    (gemma.Gemma2, families.gemma2.Gemma2Config),
    (gemma.Gemma3, families.gemma3.Gemma3TextConfig),
    (granite.Granite, families.granite.GraniteConfig),
    (mixtral.Mixtral, families.mixtral.MixtralConfig),
    (olmo2.OLMo2, families.olmo2.Olmo2Config),
    (phi.Phi, families.phi.PhiConfig),
    (phi3.Phi3, families.phi3.Phi3Config),
    (qwen3_moe.Qwen3MoE, families.qwen3_moe.Qwen3MoeConfig),
    (smollm3.SmolLM3, families.smollm3.SmolLM3Config),
    (stablelm.StableLM, families.stablelm.StableLmConfig),
    (Starcoder2, families.starcoder2.Starcoder2Config),
]


def built(family: type[Model], config: dict[str, Any]) -> Model:
    with torch.device("meta"):
        model = family(config)
    model.prepare("cpu", 64)
    return model


def settings(module: nn.Module) -> dict[str, object]:
    """The plain values that a module keeps."""
    plain = (bool, int, float, str, tuple, type(None))
    kept = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return kept | {"activation": getattr(module, "activation", None)}


def older_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same config.json as transformers 4 wrote it."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    if "full_attention" in rope:  # Gemma 3
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config.pop("layer_types", None)
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config


def same(left: Model, right: Model) -> None:
    shapes = [{name: list(p.shape) for name, p in model.named_parameters()} for model in (left, right)]
    assert shapes[0] == shapes[1]
    for (name, one), (_, other) in zip(left.named_modules(), right.named_modules(), strict=True):
        assert settings(one) == settings(other), name
    for one, other in zip(tables(left), tables(right), strict=True):
        assert torch.equal(one, other)
    if isinstance(left, llama.Llama) and isinstance(right, llama.Llama):
        numbers = range(len(left.layers))
        assert [left.has_positions(n) for n in numbers] == [right.has_positions(n) for n in numbers]
        inputs = torch.ones(2, dtype=torch.long), torch.randn(2, 256)
        for model in (left, right):
            model.embed_tokens = nn.Embedding(64, 256)
            model.lm_head = nn.Linear(256, 64, bias=model.lm_head.bias is not None)
            for parameter in (*model.embed_tokens.parameters(), *model.lm_head.parameters()):
                nn.init.constant_(parameter, 0.5)
        assert torch.equal(left.embed(inputs[0]), right.embed(inputs[0]))
        assert torch.equal(left.logits(inputs[1]), right.logits(inputs[1]))


def tables(model: Model) -> list[torch.Tensor]:
    """Cosines of the model's rotary embeddings."""
    rotaries = list(model.rotaries.values()) if isinstance(model, gemma.Gemma3) else [model.rotary]
    return [rotary.tables(torch.arange(64), torch.float32)[0] for rotary in rotaries]


@pytest.mark.parametrize(("family", "config_class"), CLASSES)
def test_what_config_json_leaves_out_is_as_transformers_fills_it_in(
    family: type[llama.Llama], config_class: Any
) -> None:
    same(built(family, MINIMAL), built(family, config_class(**MINIMAL).to_dict()))


@pytest.mark.parametrize(("family", "config_class"), CLASSES)
def test_the_older_spelling_means_the_same(family: type[llama.Llama], config_class: Any) -> None:
    whole = config_class(**MINIMAL).to_dict()
    same(built(family, older_spelling(whole)), built(family, whole))


def test_older_scaling_of_gemma_3_reaches_its_global_layers_only() -> None:
    scaled = MINIMAL | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    newer = families.gemma3.Gemma3TextConfig(**scaled).to_dict()
    same(built(gemma.Gemma3, scaled), built(gemma.Gemma3, newer))
    plain, stretched = built(gemma.Gemma3, MINIMAL), built(gemma.Gemma3, scaled)
    assert isinstance(plain, gemma.Gemma3)
    assert isinstance(stretched, gemma.Gemma3)
    is_equal = {kind: torch.equal(plain.rotaries[kind].cos, stretched.rotaries[kind].cos) for kind in plain.rotaries}
    assert is_equal == {"full_attention": False, "sliding_attention": True}


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_phi_3_longrope_goes_by_three_names(name: str) -> None:
    rope = {"type": name, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    model = built(phi3.Phi3, MINIMAL | lengths | {"rope_scaling": rope})
    assert isinstance(model, phi3.Phi3)
    assert model.rotary.trained_length == 16
