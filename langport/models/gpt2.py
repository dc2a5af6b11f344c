"""GPT-2: learned positions, layer norms before attention and MLP. Source: Radford et al. 2019."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.models.base import CacheSpec, Config, DecoderModel


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden = config["n_embd"]
        self.layer = layer
        self.heads = config["n_head"]
        self.head_dim = hidden // self.heads
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden)
        self.scale = self.head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            self.scale /= layer + 1

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(1)
        return self.c_proj(batch.attend(self.layer, query, key, value, scale=self.scale))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.get("n_inner") or 4 * config["n_embd"]
        self.c_fc = nn.Linear(config["n_embd"], inner)
        self.c_proj = nn.Linear(inner, config["n_embd"])
        self.activation = activation(config.get("activation_function", "gelu_new"))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Layer(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        eps = config.get("layer_norm_epsilon", 1e-5)
        self.ln_1 = nn.LayerNorm(config["n_embd"], eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config["n_embd"], eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPT2(DecoderModel):
    """GPT2LMHeadModel."""

    base_prefix = "transformer."
    tied: ClassVar = {"lm_head.weight": "wte.weight"}
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["n_embd"]
        self.wte = nn.Embedding(config["vocab_size"], hidden)
        self.wpe = nn.Embedding(config["n_positions"], hidden)
        self.h = nn.ModuleList(Layer(config, i) for i in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(hidden, config.get("layer_norm_epsilon", 1e-5))
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(config["n_layer"], config["n_head"], hidden // config["n_head"])

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.wte(batch.token_ids) + self.wpe(batch.positions)  # (num_tokens, hidden_size)
        for layer in self.h:
            x = layer(x, batch)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.lm_head.weight)
