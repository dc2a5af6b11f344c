"""Llama and its close relatives: Mistral, Qwen2, Qwen3.

They differ in biases (Qwen2), norms on query and key (Qwen3) and a sliding window (Mistral), all of which the
configuration tells. Sources: Touvron et al. 2023; Jiang et al. 2023; Qwen3 technical report 2025.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.layers.norm import RMSNorm
from langport.layers.rotary import RotaryEmbedding, rope_parameters
from langport.models.base import CacheSpec, Config, DecoderModel


class Attention(nn.Module):
    """Rotary self-attention with grouped query heads."""

    def __init__(self, config: Config, layer: int, *, qkv_bias: bool, has_qk_norm: bool) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.layer = layer
        self.heads = config["num_attention_heads"]
        self.kv_heads, self.head_dim = _head_shape(config)
        self.scale = self.head_dim**-0.5
        self.window = _window(config, layer)
        self.sizes = tuple(n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads))
        self.qkv_proj = nn.Linear(hidden, sum(self.sizes), bias=qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=bool(config.get("attention_bias")))
        eps = config.get("rms_norm_eps", 1e-6)
        self.q_norm = RMSNorm(self.head_dim, eps) if has_qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if has_qk_norm else None

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.qkv_proj(x).split(self.sizes, dim=-1)
        query = query.unflatten(-1, (self.heads, self.head_dim))
        key = key.unflatten(-1, (self.kv_heads, self.head_dim))
        value = value.unflatten(-1, (self.kv_heads, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotary.apply(query, tables), rotary.apply(key, tables)
        out = batch.attend(self.layer, query, key, value, scale=self.scale, window=self.window)
        return self.o_proj(out)


class GatedMLP(nn.Module):
    """act(gate) * up, then down."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        bias = bool(config.get("mlp_bias"))
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = activation(config.get("hidden_act", "silu"))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, layer: int, *, qkv_bias: bool, has_qk_norm: bool) -> None:
        super().__init__()
        eps = config.get("rms_norm_eps", 1e-6)
        self.input_layernorm = RMSNorm(config["hidden_size"], eps)
        self.self_attn = Attention(config, layer, qkv_bias=qkv_bias, has_qk_norm=has_qk_norm)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], eps)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), batch, rotary, tables)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(DecoderModel):
    """LlamaForCausalLM and MistralForCausalLM."""

    base_prefix = "model."
    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    tied: ClassVar = {"lm_head.weight": "embed_tokens.weight"}
    has_qk_norm: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(
            Layer(config, i, qkv_bias=self.qkv_bias(config), has_qk_norm=self.has_qk_norm)
            for i in range(config["num_hidden_layers"])
        )
        self.norm = RMSNorm(config["hidden_size"], config.get("rms_norm_eps", 1e-6))
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        kv_heads, self.head_dim = _head_shape(config)
        self.cache_spec = CacheSpec(len(self.layers), kv_heads, self.head_dim)

    @staticmethod
    def qkv_bias(config: Config) -> bool:
        """Whether the projections to query, key and value have a bias."""
        return bool(config.get("attention_bias"))

    def prepare(self, device: str, max_model_len: int) -> None:
        self.rotary = RotaryEmbedding(rope_parameters(self.config), self.head_dim, max_model_len, device)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.embed_tokens(batch.token_ids)  # (num_tokens, hidden_size)
        tables = self.rotary.tables(batch.positions, x.dtype)
        for layer in self.layers:
            x = layer(x, batch, self.rotary, tables)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.lm_head.weight)


class Qwen2(Llama):
    """Qwen2ForCausalLM: query, key and value have biases."""

    @staticmethod
    def qkv_bias(config: Config) -> bool:
        return True


class Qwen3(Llama):
    """Qwen3ForCausalLM: query and key are normalized per head."""

    has_qk_norm = True


def _head_shape(config: Config) -> tuple[int, int]:
    """Number of key-value heads, and the size of every head."""
    heads = config["num_attention_heads"]
    return config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads


def _window(config: Config, layer: int) -> int | None:
    """The sliding window of one layer, in tokens, or None for full attention."""
    window: int | None = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return None
    kinds = config.get("layer_types")
    if kinds:
        return window if kinds[layer] == "sliding_attention" else None
    if layer < config.get("max_window_layers", 0):
        return None
    return window
