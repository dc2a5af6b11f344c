"""Phi (1, 1.5 and 2): attention and MLP side by side, biases everywhere, heads turned in part.

Source: Gunasekar et al. 2023; Li et al. 2023.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.decoder import SelfAttention
from langport.models.base import Config
from langport.models.llama import Llama, ParallelLayer


class Attention(SelfAttention):
    """With layer norms on query and key where the configuration says so."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__(config, layer, qkv_bias=True, out_bias=True)
        self.has_qk_norm = bool(config.get("qk_layernorm"))
        if self.has_qk_norm:
            self.q_layernorm = nn.LayerNorm(self.head_dim, config["layer_norm_eps"])
            self.k_layernorm = nn.LayerNorm(self.head_dim, config["layer_norm_eps"])

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (self.q_layernorm(query), self.k_layernorm(key)) if self.has_qk_norm else (query, key)


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])
        self.activation = activation(config.get("hidden_act", "gelu_new"))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Phi(Llama):
    """PhiForCausalLM."""

    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("dense",)}
    aliases: ClassVar = {"final_layernorm.weight": "norm.weight", "final_layernorm.bias": "norm.bias"}
    defaults: ClassVar = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"])

    def layer(self, number: int) -> nn.Module:
        return ParallelLayer(self.norm_layer(), Attention(self.config, number), MLP(self.config))

    def norm_layer(self) -> nn.Module:
        return nn.LayerNorm(self.config["hidden_size"], self.config["layer_norm_eps"])

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
