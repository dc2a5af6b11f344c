"""XGLM: sine positions, otherwise as OPT. Source: Lin et al. 2021."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.attention import DecoderBatch
from langport.models.base import CacheSpec, Config, DecoderModel
from langport.models.opt import POSITION_OFFSET, Layer


class XGLM(DecoderModel):
    """XGLMForCausalLM."""

    base_prefix = "model."
    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    tied: ClassVar = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross attention to an encoder, which LangPort cannot do here")
        hidden, heads = config["d_model"], config["attention_heads"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
        self.embed_scale = math.sqrt(hidden) if config.get("scale_embedding", True) else 1.0
        like_opt = {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "ffn_dim": config["ffn_dim"],
            "activation_function": config.get("activation_function", "gelu"),
        }
        self.layers = nn.ModuleList(Layer(like_opt, i) for i in range(config["num_layers"]))
        self.layer_norm = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(len(self.layers), heads, hidden // heads)

    def prepare(self, device: str, max_model_len: int) -> None:
        self.positions = _sine_table(max_model_len + POSITION_OFFSET, self.config["d_model"]).to(device)
        padding = self.config.get("pad_token_id", 1)
        if padding is not None and padding < len(self.positions):
            self.positions[padding] = 0.0

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.embed_tokens(batch.token_ids) * self.embed_scale  # (num_tokens, hidden_size)
        x = x + self.positions[batch.positions + POSITION_OFFSET].to(x.dtype)
        for layer in self.layers:
            x = layer(x, batch)
        return self.layer_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def _sine_table(rows: int, size: int) -> Tensor:
    """(rows, size): sines of slower and slower turns, then their cosines. Source: tensor2tensor."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.outer(torch.arange(rows).float(), frequencies)
    return nn.functional.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, size - 2 * half))
