"""Granite: Llama with four factors, on embedding, scores, residuals and logits. Source: Granite Team, IBM 2024."""

from __future__ import annotations

from torch import Tensor, nn

from langport.layers.attention import DecoderBatch
from langport.layers.decoder import SelfAttention, Turn
from langport.models.llama import Layer, Llama


class ScaledLayer(Layer):
    """What attention and MLP add to the residual is multiplied by `factor`."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], self_attn: nn.Module, mlp: nn.Module, factor: float) -> None:
        super().__init__(norms, self_attn, mlp)
        self.factor = factor

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), batch, turn) * self.factor
        return x + self.mlp(self.post_attention_layernorm(x)) * self.factor


class Granite(Llama):
    """GraniteForCausalLM."""

    def layer(self, number: int) -> nn.Module:
        factor = self.config.get("residual_multiplier", 1.0)
        norms = (self.norm_layer(), self.norm_layer())
        return ScaledLayer(norms, self.attention(number), self.mlp(number), factor)

    def attention(self, number: int) -> SelfAttention:
        has_bias = bool(self.config.get("attention_bias"))
        scale = self.config.get("attention_multiplier", 1.0)
        return SelfAttention(self.config, number, qkv_bias=has_bias, out_bias=has_bias, scale=scale)

    def embed(self, token_ids: Tensor) -> Tensor:
        return super().embed(token_ids) * self.config.get("embedding_multiplier", 1.0)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden) / self.config.get("logits_scaling", 1.0)
