"""Falcon: few key-value heads, attention and MLP side by side; the RW models use ALiBi and one part after the other.

Sources: Almazrouei et al. 2023; Penedo et al. 2023 (RefinedWeb).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.alibi import alibi_slopes
from langport.layers.attention import DecoderBatch
from langport.layers.fused import split_grouped
from langport.layers.rotary import RotaryEmbedding, rope_parameters
from langport.models.base import CacheSpec, Config, DecoderModel
from langport.ops.attention import KeyBiases


class Positions:
    """What one step's attention needs to know about positions: rotary tables, or linear biases."""

    def __init__(self, config: Config, head_dim: int, max_model_len: int, device: str, dtype: torch.dtype) -> None:
        self.rotary: RotaryEmbedding | None = None
        self.biases: KeyBiases | None = None
        if config.get("alibi"):
            # Falcon was trained with biases rounded to bfloat16, key by key from the beginning of the sequence.
            slopes = alibi_slopes(config["num_attention_heads"]).to(device, torch.bfloat16)
            losses = slopes[:, None] * torch.arange(max_model_len, device=device)
            self.biases = KeyBiases.by_position(losses.to(dtype) / head_dim**0.5)
        else:
            self.rotary = RotaryEmbedding(rope_parameters(config), head_dim, max_model_len, device)

    def start(self, batch: DecoderBatch, dtype: torch.dtype) -> None:
        """Compute what all layers of the step share."""
        if self.rotary is not None:
            self.tables = self.rotary.tables(batch.positions, dtype)

    def turn(self, x: Tensor) -> Tensor:
        """Rotate x (num_tokens, heads, head_dim), or leave it as it is."""
        return x if self.rotary is None else self.rotary.apply(x, self.tables)


class Attention(nn.Module):
    """Self-attention; each key-value head lies beside its query heads."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config.get("bias", False)
        self.layer = layer
        self.kv_heads = _kv_heads(config)
        self.head_dim = hidden // config["num_attention_heads"]
        self.query_key_value = nn.Linear(hidden, hidden + 2 * self.kv_heads * self.head_dim, bias=bias)
        self.dense = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, batch: DecoderBatch, positions: Positions) -> Tensor:
        query, key, value = split_grouped(self.query_key_value(x), self.kv_heads, self.head_dim)
        query, key = positions.turn(query), positions.turn(key)
        scale = self.head_dim**-0.5
        return self.dense(batch.attend(self.layer, query, key, value, scale=scale, biases=positions.biases))


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config.get("bias", False)
        inner = config.get("ffn_hidden_size") or 4 * hidden
        self.dense_h_to_4h = nn.Linear(hidden, inner, bias=bias)
        self.dense_4h_to_h = nn.Linear(inner, hidden, bias=bias)
        self.activation = activation(config.get("activation", "gelu"))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    """Attention and MLP side by side behind one norm or two (Falcon 40B), or one after the other (Falcon RW)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        is_new = config.get("new_decoder_architecture", False)
        self.has_two_norms = is_new and (config.get("num_ln_in_parallel_attn") or 2) == 2
        self.is_parallel = is_new or config.get("parallel_attn", True)
        self.self_attention = Attention(config, layer)
        self.mlp = MLP(config)
        if self.has_two_norms:
            self.ln_attn, self.ln_mlp = _norm(config), _norm(config)
        else:
            self.input_layernorm = _norm(config)
        if not self.is_parallel:
            self.post_attention_layernorm = _norm(config)

    def forward(self, x: Tensor, batch: DecoderBatch, positions: Positions) -> Tensor:
        normed = self.ln_attn(x) if self.has_two_norms else self.input_layernorm(x)
        attended = self.self_attention(normed, batch, positions)
        if not self.is_parallel:
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x))
        return x + attended + self.mlp(self.ln_mlp(x) if self.has_two_norms else normed)


class Falcon(DecoderModel):
    """FalconForCausalLM."""

    base_prefix = "transformer."
    tied: ClassVar = {"lm_head.weight": "word_embeddings.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], hidden)
        self.h = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        self.ln_f = _norm(config)
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(len(self.h), _kv_heads(config), hidden // config["num_attention_heads"])

    def prepare(self, device: str, max_model_len: int) -> None:
        dtype = self.word_embeddings.weight.dtype
        self.positions = Positions(self.config, self.cache_spec.head_dim, max_model_len, device, dtype)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.word_embeddings(batch.token_ids)  # (num_tokens, hidden_size)
        self.positions.start(batch, x.dtype)
        for layer in self.h:
            x = layer(x, batch, self.positions)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def _kv_heads(config: Config) -> int:
    heads = config["num_attention_heads"]
    if config.get("new_decoder_architecture"):
        return config.get("num_kv_heads") or heads
    return 1 if config.get("multi_query", True) else heads


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], config.get("layer_norm_epsilon", 1e-5))
