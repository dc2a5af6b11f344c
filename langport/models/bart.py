"""BART and mBART: learned positions, norms after (BART) or before (mBART) each part. Source: Lewis et al. 2019."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from langport.layers.activations import Activated
from langport.layers.attention import DecoderBatch
from langport.layers.encoder import EncoderBatch
from langport.layers.norm import LayerNorm
from langport.models.base import CacheSpec, Config, EncoderDecoderModel

POSITION_OFFSET = 2
"""The first rows of the position table are never used: BART's embeddings once had a padding row there."""


class Attention(nn.Module):
    """Projections of one attention; the caller attends."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, hidden // heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def split(self, x: Tensor) -> Tensor:
        """(..., hidden) to (..., heads, head_dim)"""
        return x.unflatten(-1, (self.heads, self.head_dim))

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))


class Layer(nn.Module):
    """One layer of the encoder or of the decoder."""

    def __init__(self, config: Config, side: str, *, is_norm_first: bool) -> None:
        super().__init__()
        hidden, heads = config["d_model"], config[f"{side}_attention_heads"]
        self.is_norm_first = is_norm_first
        self.self_attn = Attention(hidden, heads)
        self.self_attn_layer_norm = LayerNorm(hidden)
        if side == "decoder":
            self.encoder_attn = Attention(hidden, heads)
            self.encoder_attn_layer_norm = LayerNorm(hidden)
        self.fc1 = nn.Linear(hidden, config[f"{side}_ffn_dim"])
        self.fc2 = nn.Linear(config[f"{side}_ffn_dim"], hidden)
        self.final_layer_norm = LayerNorm(hidden)
        self.activated = Activated(config.get("activation_function", "gelu"))

    def encode(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        """x (num_tokens, hidden_size)"""
        part = self.self_attn

        def attend(y: Tensor) -> Tensor:
            return part.out_proj(batch.attend(*part.query_key_value(y), scale=part.scale))

        x = self._residual(x, self.self_attn_layer_norm, attend)
        return self._residual(x, self.final_layer_norm, self._mlp)

    def decode(self, x: Tensor, batch: DecoderBatch, number: int) -> Tensor:
        """x (num_tokens, hidden_size); `number` is the layer's."""
        part, cross = self.self_attn, self.encoder_attn

        def attend(y: Tensor) -> Tensor:
            out = batch.attend(number, *part.query_key_value(y), scale=part.scale)
            return part.out_proj(out)

        def attend_encoder(y: Tensor) -> Tensor:
            out = batch.attend_encoder(number, cross.split(cross.q_proj(y)), scale=cross.scale)
            return cross.out_proj(out)

        x = self._residual(x, self.self_attn_layer_norm, attend)
        x = self._residual(x, self.encoder_attn_layer_norm, attend_encoder)
        return self._residual(x, self.final_layer_norm, self._mlp)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.activated(self.fc1, x))

    def _residual(self, x: Tensor, norm: LayerNorm, part: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_norm_first:
            return x + part(norm(x))
        return norm(part(x), x)


class Stack(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, config: Config, side: str, *, is_norm_first: bool) -> None:
        super().__init__()
        hidden = config["d_model"]
        self.embed_positions = nn.Embedding(config["max_position_embeddings"] + POSITION_OFFSET, hidden)
        self.layernorm_embedding = LayerNorm(hidden)
        self.layers: Any = nn.ModuleList(
            Layer(config, side, is_norm_first=is_norm_first) for _ in range(config[f"{side}_layers"])
        )
        self.layer_norm = LayerNorm(hidden) if is_norm_first else nn.Identity()

    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """Word embeddings (..., hidden_size) with their positions (...,) added."""
        return cast(Tensor, self.layernorm_embedding(words, self.embed_positions(positions + POSITION_OFFSET)))


class BART(EncoderDecoderModel):
    """BartForConditionalGeneration."""

    base_prefix = "model."
    tied: ClassVar = {"lm_head.weight": "shared.weight"}
    aliases: ClassVar = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    zero_when_absent = ("final_logits_bias",)
    is_norm_first: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["d_model"]
        self.shared = nn.Embedding(config["vocab_size"], hidden)
        self.encoder = Stack(config, "encoder", is_norm_first=self.is_norm_first)
        self.decoder = Stack(config, "decoder", is_norm_first=self.is_norm_first)
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.final_logits_bias = nn.Parameter(torch.empty(1, config["vocab_size"]))
        self.embed_scale = hidden**0.5 if config.get("scale_embedding") else 1.0
        heads = config["decoder_attention_heads"]
        self.cache_spec = CacheSpec(config["decoder_layers"], heads, hidden // heads)

    def encode(self, batch: EncoderBatch) -> Tensor:
        x = self.encoder.embed(self.shared(batch.token_ids) * self.embed_scale, batch.positions)
        for layer in self.encoder.layers:
            x = layer.encode(x, batch)
        return self.encoder.layer_norm(x)

    def cross_key_value(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        part = self.decoder.layers[layer].encoder_attn
        return part.split(part.k_proj(states)), part.split(part.v_proj(states))

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.decoder.embed(self.shared(batch.token_ids) * self.embed_scale, batch.positions)
        for number, layer in enumerate(self.decoder.layers):
            x = layer.decode(x, batch, number)
        return self.decoder.layer_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden) + self.final_logits_bias


class MBart(BART):
    """MBartForConditionalGeneration: norms come before each part, and once more after the last layer."""

    is_norm_first = True
