"""Command R (Cohere) and Command R7B (Cohere2): attention and MLP side by side, layer norms without bias.

Heads are turned by neighbouring pairs, the logits are scaled; Cohere2 turns only its local layers.
Source: the models' published configurations and weights.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langport.layers.decoder import SelfAttention
from langport.models.base import Config
from langport.models.llama import Llama, ParallelLayer


class LayerNorm(nn.Module):
    """Layer norm over the last dimension without bias; with (heads, head_dim) as `size` every head has its weights."""

    def __init__(self, *size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class Attention(SelfAttention):
    """With norms on query and key, every head having its own weights (Command R+)."""

    def __init__(self, config: Config, layer: int) -> None:
        has_bias = bool(config.get("attention_bias"))
        super().__init__(config, layer, qkv_bias=has_bias, out_bias=has_bias)
        eps = config["layer_norm_eps"]
        self.q_norm = LayerNorm(self.heads, self.head_dim, eps=eps)
        self.k_norm = LayerNorm(self.kv_heads, self.head_dim, eps=eps)

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(query), self.k_norm(key)


class Cohere(Llama):
    """CohereForCausalLM."""

    defaults: ClassVar[Config] = {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "rope_theta": 500000.0}
    is_interleaved = True

    def layer(self, number: int) -> nn.Module:
        return ParallelLayer(self.norm_layer(), self.attention(number), self.mlp(number))

    def attention(self, number: int) -> SelfAttention:
        return Attention(self.config, number) if self.config.get("use_qk_norm") else super().attention(number)

    def norm_layer(self) -> nn.Module:
        return LayerNorm(self.config["hidden_size"], eps=self.config["layer_norm_eps"])

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) * self.config["logit_scale"]


class Cohere2(Cohere):
    """Cohere2ForCausalLM: three local layers that know positions to each global one that knows none."""

    defaults: ClassVar[Config] = {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "sliding_window": 4096}

    def window(self, number: int) -> int | None:
        kinds = self.config.get("layer_types")
        if kinds:
            is_local = kinds[number] == "sliding_attention"
        else:
            is_local = (number + 1) % self.config.get("sliding_window_pattern", 4) != 0
        return self.config["sliding_window"] if is_local else None

    def has_positions(self, number: int) -> bool:
        return self.window(number) is not None
