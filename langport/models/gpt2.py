"""GPT-2 and GPTBigCode: learned positions, layer norms before attention and MLP.

GPTBigCode shares one key-value head among all query heads. Sources: Radford et al. 2019; SantaCoder, Ben Allal et al.
2023; StarCoder, Li et al. 2023.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.layers.fused import split_grouped
from langport.models.base import CacheSpec, Config, DecoderModel


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden = config["n_embd"]
        self.layer = layer
        self.heads = config["n_head"]
        self.kv_heads = _kv_heads(config)
        self.head_dim = hidden // self.heads
        self.c_attn = nn.Linear(hidden, hidden + 2 * self.kv_heads * self.head_dim)
        self.c_proj = nn.Linear(hidden, hidden)
        self.scale = self.head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            self.scale /= layer + 1

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (num_tokens, heads, head_dim)."""
        query, key, value = fused.unflatten(-1, (3, self.heads, self.head_dim)).unbind(1)
        return query, key, value

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        query, key, value = self.split(self.c_attn(x))
        return self.c_proj(batch.attend(self.layer, query, key, value, scale=self.scale))


class GroupedAttention(Attention):
    """GPTBigCode's: query, key and value lie together per key-value head."""

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split_grouped(fused, self.kv_heads, self.head_dim)


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config, default_activation: str) -> None:
        super().__init__()
        inner = config.get("n_inner") or 4 * config["n_embd"]
        self.c_fc = nn.Linear(config["n_embd"], inner)
        self.c_proj = nn.Linear(inner, config["n_embd"])
        self.activation = activation(config.get("activation_function", default_activation))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, attention: Attention, mlp: MLP) -> None:
        super().__init__()
        eps = config.get("layer_norm_epsilon", 1e-5)
        self.ln_1 = nn.LayerNorm(config["n_embd"], eps)
        self.attn = attention
        self.ln_2 = nn.LayerNorm(config["n_embd"], eps)
        self.mlp = mlp

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        x = x + self.attn(self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPT2(DecoderModel):
    """GPT2LMHeadModel."""

    base_prefix = "transformer."
    tied: ClassVar = {"lm_head.weight": "wte.weight"}
    transposed: ClassVar[tuple[str, ...]] = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    attention_class: ClassVar[type[Attention]] = Attention
    default_activation: ClassVar[str] = "gelu_new"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.get("add_cross_attention"):
            raise CheckpointError("config.json asks for cross attention to an encoder, which LangPort cannot do here")
        hidden = config["n_embd"]
        self.wte = nn.Embedding(config["vocab_size"], hidden)
        self.wpe = nn.Embedding(config["n_positions"], hidden)
        self.h = nn.ModuleList(
            Layer(config, self.attention_class(config, i), MLP(config, self.default_activation))
            for i in range(config["n_layer"])
        )
        self.ln_f = nn.LayerNorm(hidden, config.get("layer_norm_epsilon", 1e-5))
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(config["n_layer"], _kv_heads(config), hidden // config["n_head"])

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.wte(batch.token_ids) + self.wpe(batch.positions)  # (num_tokens, hidden_size)
        for layer in self.h:
            x = layer(x, batch)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


class GPTBigCode(GPT2):
    """GPTBigCodeForCausalLM."""

    transposed = ()
    attention_class = GroupedAttention
    default_activation = "gelu_pytorch_tanh"

    def __init__(self, config: Config) -> None:
        super().__init__({"multi_query": True, **config})


def _kv_heads(config: Config) -> int:
    return 1 if config.get("multi_query") else config["n_head"]
