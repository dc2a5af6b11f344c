"""GPT-NeoX and Pythia: rotary positions on part of each head, attention and MLP side by side.

Source: Black et al. 2022.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.layers.fused import split_grouped
from langport.layers.rotary import RotaryEmbedding, rope_parameters
from langport.models.base import CacheSpec, Config, DecoderModel


class Attention(nn.Module):
    """Rotary self-attention; query, key and value lie together per head."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config.get("attention_bias", True)
        self.layer = layer
        self.heads = config["num_attention_heads"]
        self.head_dim = hidden // self.heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.dense = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = split_grouped(self.query_key_value(x), self.heads, self.head_dim)
        query, key = rotary.apply(query, tables), rotary.apply(key, tables)
        return self.dense(batch.attend(self.layer, query, key, value, scale=self.head_dim**-0.5))


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.dense_h_to_4h = nn.Linear(hidden, inner)
        self.dense_4h_to_h = nn.Linear(inner, hidden)
        self.activation = activation(config.get("hidden_act", "gelu"))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    """Attention and MLP, side by side (`use_parallel_residual`) or one after the other."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        eps = config.get("layer_norm_eps", 1e-5)
        self.is_parallel = config.get("use_parallel_residual", True)
        self.input_layernorm = nn.LayerNorm(config["hidden_size"], eps)
        self.post_attention_layernorm = nn.LayerNorm(config["hidden_size"], eps)
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        attended = x + self.attention(self.input_layernorm(x), batch, rotary, tables)
        return attended + self.mlp(self.post_attention_layernorm(x if self.is_parallel else attended))


class GPTNeoX(DecoderModel):
    """GPTNeoXForCausalLM."""

    base_prefix = "gpt_neox."
    aliases: ClassVar = {"embed_out.weight": "lm_head.weight"}
    tied: ClassVar = {"lm_head.weight": "embed_in.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["hidden_size"]
        self.embed_in = nn.Embedding(config["vocab_size"], hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        self.final_layer_norm = nn.LayerNorm(hidden, config.get("layer_norm_eps", 1e-5))
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(
            len(self.layers), config["num_attention_heads"], hidden // config["num_attention_heads"]
        )

    def prepare(self, device: str, max_model_len: int) -> None:
        older = {
            "rope_theta": self.config.get("rotary_emb_base", 10000.0),
            "partial_rotary_factor": self.config.get("rotary_pct", 0.25),
        }
        parameters = rope_parameters({**older, **self.config})
        self.rotary = RotaryEmbedding(parameters, self.cache_spec.head_dim, max_model_len, device)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.embed_in(batch.token_ids)  # (num_tokens, hidden_size)
        tables = self.rotary.tables(batch.positions, x.dtype)
        for layer in self.layers:
            x = layer(x, batch, self.rotary, tables)
        return self.final_layer_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
