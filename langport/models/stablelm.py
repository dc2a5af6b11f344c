"""StableLM: Llama with layer norms, heads turned in part and, in some sizes, attention and MLP side by side.

Source: Bellagente et al. 2024.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langport.layers.decoder import SelfAttention
from langport.models.base import Config
from langport.models.llama import Llama, ParallelLayer


class HeadNorms(nn.Module):
    """A layer norm without bias for each head, with weights of its own."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norms: Any = nn.ModuleList(nn.LayerNorm(head_dim, eps, bias=False) for _ in range(heads))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (num_tokens, heads, head_dim)"""
        weights = torch.stack([norm.weight for norm in self.norms])
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * weights


class Attention(SelfAttention):
    """With norms on query and key."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__(config, layer, qkv_bias=config["use_qkv_bias"])
        self.q_layernorm = HeadNorms(self.heads, self.head_dim, config["layer_norm_eps"])
        self.k_layernorm = HeadNorms(self.kv_heads, self.head_dim, config["layer_norm_eps"])

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_layernorm(query), self.k_layernorm(key)


class StableLM(Llama):
    """StableLmForCausalLM."""

    defaults: ClassVar = {
        "num_key_value_heads": 32,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": False,
    }

    def layer(self, number: int) -> nn.Module:
        if self.config.get("use_parallel_residual"):
            return ParallelLayer(self.norm_layer(), self.attention(number), self.mlp(number))
        return super().layer(number)

    def attention(self, number: int) -> SelfAttention:
        if self.config.get("qk_layernorm"):
            return Attention(self.config, number)
        return SelfAttention(self.config, number, qkv_bias=self.config["use_qkv_bias"])

    def norm_layer(self) -> nn.Module:
        return nn.LayerNorm(self.config["hidden_size"], self.config["layer_norm_eps"])
