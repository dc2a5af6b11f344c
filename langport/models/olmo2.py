"""OLMo 2: norms behind attention and MLP instead of before, and over all of query and key.

Source: OLMo Team 2024 (arXiv 2501.00656).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.attention import DecoderBatch
from langport.layers.decoder import SelfAttention, Turn
from langport.layers.norm import RMSNorm
from langport.models.base import Config
from langport.models.llama import Llama


class Attention(SelfAttention):
    """One norm spans all heads of the query, another those of the key."""

    def __init__(self, config: Config, layer: int) -> None:
        has_bias = bool(config.get("attention_bias"))
        super().__init__(config, layer, qkv_bias=has_bias, out_bias=has_bias)
        self.q_norm = RMSNorm(self.heads * self.head_dim, config["rms_norm_eps"])
        self.k_norm = RMSNorm(self.kv_heads * self.head_dim, config["rms_norm_eps"])

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(query.flatten(1)).view_as(query), self.k_norm(key.flatten(1)).view_as(key)


class Layer(nn.Module):
    """Attention and MLP, each before a norm and beside a residual."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.post_attention_layernorm, self.post_feedforward_layernorm = norms
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, batch, turn))
        return x + self.post_feedforward_layernorm(self.mlp(x))


class OLMo2(Llama):
    """Olmo2ForCausalLM."""

    defaults: ClassVar = {"rms_norm_eps": 1e-5}

    def layer(self, number: int) -> nn.Module:
        return Layer((self.norm_layer(), self.norm_layer()), Attention(self.config, number), self.mlp(number))
