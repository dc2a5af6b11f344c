"""MPT: linear biases instead of positions (ALiBi), no bias anywhere. Source: MosaicML 2023 (llm-foundry)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.activations import activation
from langport.layers.alibi import alibi_slopes, distance_biases
from langport.layers.attention import DecoderBatch
from langport.models.base import CacheSpec, Config, DecoderModel
from langport.ops.attention import KeyBiases

NEEDED = {"alibi": True, "attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False}
"""Settings in `attn_config` that the published models have and transformers takes for granted."""


class Attention(nn.Module):
    """Self-attention, with its projections clipped in some models."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, settings = config["d_model"], config.get("attn_config") or {}
        self.layer = layer
        self.heads = config["n_heads"]
        self.scale = settings.get("softmax_scale") or (hidden // self.heads) ** -0.5
        self.clip = settings.get("clip_qkv")
        self.Wqkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, batch: DecoderBatch, biases: KeyBiases) -> Tensor:
        fused = self.Wqkv(x)
        if self.clip:
            fused = fused.clamp(-self.clip, self.clip)
        query, key, value = fused.unflatten(-1, (3, self.heads, -1)).unbind(1)
        return self.out_proj(batch.attend(self.layer, query, key, value, scale=self.scale, biases=biases))


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config["d_model"], config.get("expansion_ratio", 4) * config["d_model"]
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.activation = activation("gelu")

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.norm_1 = _norm(config)
        self.attn = Attention(config, layer)
        self.norm_2 = _norm(config)
        self.ffn = MLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch, biases: KeyBiases) -> Tensor:
        x = x + self.attn(self.norm_1(x), batch, biases)
        return x + self.ffn(self.norm_2(x))


class MPT(DecoderModel):
    """MptForCausalLM, and MPTForCausalLM as its authors spelled it."""

    base_prefix = "transformer."
    tied: ClassVar = {"lm_head.weight": "wte.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings = config.get("attn_config") or {}
        _refuse_variants(config, self.settings)
        self.wte = nn.Embedding(config["vocab_size"], config["d_model"])
        self.blocks = nn.ModuleList(Layer(config, i) for i in range(config["n_layers"]))
        self.norm_f = _norm(config)
        self.lm_head = nn.Linear(config["d_model"], config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(len(self.blocks), config["n_heads"], config["d_model"] // config["n_heads"])

    def prepare(self, device: str, max_model_len: int) -> None:
        # transformers passes over `alibi_bias_max`; of the published models only StoryWriter has another than 8.
        slopes = alibi_slopes(self.config["n_heads"], self.settings.get("alibi_bias_max", 8)).to(device)
        self.biases = distance_biases(slopes, max_model_len)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.wte(batch.token_ids)  # (num_tokens, hidden_size)
        for layer in self.blocks:
            x = layer(x, batch, self.biases)
        return self.norm_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config["d_model"], config.get("layer_norm_epsilon", 1e-5), bias=False)


def _refuse_variants(config: Config, settings: Config) -> None:
    for name, needed in NEEDED.items():
        if settings.get(name, needed) != needed:
            raise CheckpointError(
                f"config.json: attn_config has {name} {settings[name]!r}; LangPort, like transformers, runs MPT with "
                f"{needed!r} only"
            )
    if config.get("no_bias") is False or config.get("logit_scale") is not None:
        raise CheckpointError("config.json: LangPort, like transformers, runs MPT without biases and logit_scale only")
