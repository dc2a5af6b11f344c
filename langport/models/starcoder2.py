"""StarCoder2: grouped query heads, rotary positions, layer norms and a plain MLP. Source: Lozhkov et al. 2024."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.decoder import SelfAttention
from langport.models.base import Config
from langport.models.llama import Llama


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.c_fc = nn.Linear(hidden, inner, bias=config["use_bias"])
        self.c_proj = nn.Linear(inner, hidden, bias=config["use_bias"])
        self.activation = activation(config.get("hidden_act", "gelu_pytorch_tanh"))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Starcoder2(Llama):
    """Starcoder2ForCausalLM."""

    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    defaults: ClassVar = {"num_key_value_heads": 2, "use_bias": True}

    def attention(self, number: int) -> SelfAttention:
        has_bias = self.config["use_bias"]
        return SelfAttention(self.config, number, qkv_bias=has_bias, out_bias=has_bias, window=self.window(number))

    def window(self, number: int) -> int | None:
        window: int | None = self.config.get("sliding_window")
        return window

    def mlp(self, number: int) -> nn.Module:
        return MLP(self.config)

    def norm_layer(self) -> nn.Module:
        return nn.LayerNorm(self.config["hidden_size"], self.config.get("norm_epsilon", 1e-5))
