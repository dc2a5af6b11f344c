"""GPT-J and CodeGen: rotary positions on pairs of neighbours, attention and MLP side by side behind one norm.

Sources: Wang and Komatsuzaki 2021 (mesh-transformer-jax); Nijkamp et al. 2022.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.layers.rotary import RotaryEmbedding, rope_parameters
from langport.models.base import CacheSpec, Config, DecoderModel


class Attention(nn.Module):
    """Rotary self-attention without biases."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden = config["n_embd"]
        self.layer = layer
        self.heads = config["n_head"]
        self.scale = (hidden // self.heads) ** -0.5
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (num_tokens, heads, head_dim)."""
        query, key, value = fused.unflatten(-1, (3, self.heads, -1)).unbind(1)
        return query, key, value

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        query, key, value = self.split(self.qkv_proj(x))
        query, key = rotary.apply(query, tables), rotary.apply(key, tables)
        return self.out_proj(batch.attend(self.layer, query, key, value, scale=self.scale))


class SlicedAttention(Attention):
    """CodeGen's: the projection lies in the slices of the four TPU cores that it was trained on."""

    NUM_SLICES = 4

    def split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slices = fused.unflatten(-1, (self.NUM_SLICES, 3, self.heads // self.NUM_SLICES, -1))
        query, value, key = (part.flatten(1, 2) for part in slices.unbind(2))
        return query, key, value


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inner = config.get("n_inner") or 4 * config["n_embd"]
        self.fc_in = nn.Linear(config["n_embd"], inner)
        self.fc_out = nn.Linear(inner, config["n_embd"])
        self.activation = activation(config.get("activation_function", "gelu_new"))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(self.activation(self.fc_in(x)))


class Layer(nn.Module):
    """Attention and MLP read the same normalized states."""

    def __init__(self, config: Config, attention: Attention) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config["n_embd"], config.get("layer_norm_epsilon", 1e-5))
        self.attn = attention
        self.mlp = MLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch, rotary: RotaryEmbedding, tables: tuple[Tensor, Tensor]) -> Tensor:
        normed = self.ln_1(x)
        return self.attn(normed, batch, rotary, tables) + self.mlp(normed) + x


class GPTJ(DecoderModel):
    """GPTJForCausalLM."""

    base_prefix = "transformer."
    stacked: ClassVar[dict[str, tuple[str, ...]]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    tied: ClassVar = {"lm_head.weight": "wte.weight"}
    attention_class: ClassVar[type[Attention]] = Attention

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["n_embd"]
        self.wte = nn.Embedding(config["vocab_size"], hidden)
        self.h = nn.ModuleList(Layer(config, self.attention_class(config, i)) for i in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(hidden, config.get("layer_norm_epsilon", 1e-5))
        self.lm_head = nn.Linear(hidden, config["vocab_size"])
        self.cache_spec = CacheSpec(config["n_layer"], config["n_head"], hidden // config["n_head"])

    def prepare(self, device: str, max_model_len: int) -> None:
        rotary_dim = self.config.get("rotary_dim", 64) or self.cache_spec.head_dim
        self.rotary = RotaryEmbedding(rope_parameters({}), rotary_dim, max_model_len, device, is_interleaved=True)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.wte(batch.token_ids)  # (num_tokens, hidden_size)
        tables = self.rotary.tables(batch.positions, x.dtype)
        for layer in self.h:
            x = layer(x, batch, self.rotary, tables)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


class CodeGen(GPTJ):
    """CodeGenForCausalLM."""

    stacked: ClassVar = {}
    attention_class = SlicedAttention
