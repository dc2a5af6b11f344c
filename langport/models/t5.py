"""T5 and its successors (T5 v1.1, Flan-T5, mT5): relative position biases, no scaling of the scores.

Sources: Raffel et al. 2019; Shazeer 2020 (gated MLP of v1.1).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langport.layers.activations import Activated
from langport.layers.attention import DecoderBatch
from langport.layers.encoder import DistanceBiases, EncoderBatch
from langport.layers.norm import RMSNorm
from langport.models.base import CacheSpec, Config, EncoderDecoderModel
from langport.ops.attention import KeyBiases


class SelfAttention(nn.Module):
    """Projections of an attention of tokens to each other; the caller attends."""

    def __init__(self, config: Config, *, has_relative_bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = config["num_heads"], config["d_kv"]
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(config["d_model"], 3 * inner, bias=False)
        self.o = nn.Linear(inner, config["d_model"], bias=False)
        if has_relative_bias:
            buckets = config.get("relative_attention_num_buckets", 32)
            self.relative_attention_bias = nn.Embedding(buckets, self.heads)

    def query_key_value(self, x: Tensor) -> tuple[Tensor, ...]:
        """(num_tokens, heads, head_dim) each"""
        return self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(1)


class CrossAttention(nn.Module):
    """Projections of a decoder's attention to an encoder's states; the caller attends."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.head_dim = config["num_heads"], config["d_kv"]
        inner = self.heads * self.head_dim
        self.q = nn.Linear(config["d_model"], inner, bias=False)
        self.k = nn.Linear(config["d_model"], inner, bias=False)
        self.v = nn.Linear(config["d_model"], inner, bias=False)
        self.o = nn.Linear(inner, config["d_model"], bias=False)

    def split(self, x: Tensor) -> Tensor:
        """(num_tokens, inner) to (num_tokens, heads, head_dim)"""
        return x.unflatten(-1, (self.heads, self.head_dim))


class MLP(nn.Module):
    """`wi` and `wo`, or the gated form with `wi_0` and `wi_1`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind = config.get("feed_forward_proj", "relu")
        self.is_gated = kind.startswith("gated-")
        name = kind.removeprefix("gated-")
        self.activated = Activated("gelu_new" if kind == "gated-gelu" else name)
        hidden, inner = config["d_model"], config["d_ff"]
        if self.is_gated:
            self.wi_0 = nn.Linear(hidden, inner, bias=False)
            self.wi_1 = nn.Linear(hidden, inner, bias=False)
        else:
            self.wi = nn.Linear(hidden, inner, bias=False)
        self.wo = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_gated:
            return self.wo(self.activated(self.wi_0, x) * self.wi_1(x))
        return self.wo(self.activated(self.wi, x))


class SubLayer(nn.Module):
    """A norm and one of self-attention, cross-attention and MLP, under the names that checkpoints give them."""

    def __init__(self, config: Config, **parts: nn.Module) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config["d_model"], config.get("layer_norm_epsilon", 1e-6))
        for name, part in parts.items():
            self.add_module(name, part)


class Block(nn.Module):
    """The sub-layers of one layer: self-attention, in decoders cross-attention, MLP."""

    def __init__(self, config: Config, *, is_first: bool, is_decoder: bool) -> None:
        super().__init__()
        attention = SelfAttention(config, has_relative_bias=is_first)
        layers = [SubLayer(config, SelfAttention=attention)]
        if is_decoder:
            layers.append(SubLayer(config, EncDecAttention=CrossAttention(config)))
        layers.append(SubLayer(config, DenseReluDense=MLP(config)))
        self.layer: Any = nn.ModuleList(layers)


class Stack(nn.Module):
    """The encoder or the decoder: blocks and a final norm."""

    def __init__(self, config: Config, num_layers: int, *, is_decoder: bool) -> None:
        super().__init__()
        blocks = [Block(config, is_first=i == 0, is_decoder=is_decoder) for i in range(num_layers)]
        self.block: Any = nn.ModuleList(blocks)
        self.final_layer_norm = RMSNorm(config["d_model"], config.get("layer_norm_epsilon", 1e-6))

    def bias_table(self) -> Tensor:
        """(num_buckets, heads): the first layer's biases, which every layer uses."""
        return self.block[0].layer[0].SelfAttention.relative_attention_bias.weight


class T5(EncoderDecoderModel):
    """T5ForConditionalGeneration and MT5ForConditionalGeneration."""

    stacked: ClassVar = {"qkv": ("q", "k", "v")}
    tied: ClassVar = {"lm_head.weight": "shared.weight"}
    aliases: ClassVar = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        num_decoder_layers = config.get("num_decoder_layers") or config["num_layers"]
        self.shared = nn.Embedding(config["vocab_size"], config["d_model"])
        self.encoder = Stack(config, config["num_layers"], is_decoder=False)
        self.decoder = Stack(config, num_decoder_layers, is_decoder=True)
        self.lm_head = nn.Linear(config["d_model"], config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(num_decoder_layers, config["num_heads"], config["d_kv"])
        # The first T5 scales the output and ties the head; v1.1 does neither.
        is_scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
        self.output_scale = config["d_model"] ** -0.5 if is_scaled else 1.0

    def prepare(self, device: str, max_model_len: int) -> None:
        distances = torch.arange(max_model_len + 1, device=device)  # one more: of the token that a decoder starts from
        buckets = relative_position_bucket(-distances, self.config, is_bidirectional=False)
        self.biases = KeyBiases.by_distance(self.decoder.bias_table()[buckets].t())
        both_ways = torch.arange(1 - max_model_len, max_model_len, device=device)
        buckets = relative_position_bucket(both_ways, self.config, is_bidirectional=True)
        self.encoder_biases = DistanceBiases.of(self.encoder.bias_table()[buckets].t())

    def encode(self, batch: EncoderBatch) -> Tensor:
        x = self.shared(batch.token_ids)  # (num_tokens, hidden_size)
        for block in self.encoder.block:
            attention, mlp = block.layer
            part = attention.SelfAttention
            query, key, value = part.query_key_value(attention.layer_norm(x))
            x = x + part.o(batch.attend(query, key, value, scale=1.0, biases=self.encoder_biases))
            x = x + mlp.DenseReluDense(mlp.layer_norm(x))
        return self.encoder.final_layer_norm(x)

    def cross_key_value(self, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        part = self.decoder.block[layer].layer[1].EncDecAttention
        return part.split(part.k(states)), part.split(part.v(states))

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.shared(batch.token_ids)  # (num_tokens, hidden_size)
        for number, block in enumerate(self.decoder.block):
            attention, cross, mlp = block.layer
            part = attention.SelfAttention
            y = attention.layer_norm(x)
            x = x + part.o(batch.attend(number, *part.query_key_value(y), scale=1.0, biases=self.biases))
            part = cross.EncDecAttention
            query = part.split(part.q(cross.layer_norm(x)))
            x = x + part.o(batch.attend_encoder(number, query, scale=1.0))
            x = x + mlp.DenseReluDense(mlp.layer_norm(x))
        return self.decoder.final_layer_norm(x) * self.output_scale

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def relative_position_bucket(distance: Tensor, config: dict[str, Any], *, is_bidirectional: bool) -> Tensor:
    """The bias bucket of each key-minus-query distance: exact when near, logarithmic when far.

    Source: Raffel et al. 2019, section 2.1.
    """
    num_buckets = config.get("relative_attention_num_buckets", 32)
    max_distance = config.get("relative_attention_max_distance", 128)
    if is_bidirectional:
        num_buckets //= 2
        buckets = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        buckets = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    max_exact = num_buckets // 2
    share = torch.log(distance.clamp(min=1).float() / max_exact) / math.log(max_distance / max_exact)
    far = (max_exact + (share * (num_buckets - max_exact)).long()).clamp(max=num_buckets - 1)
    return buckets + torch.where(distance < max_exact, distance, far)
