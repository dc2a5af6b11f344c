"""GPT-Neo: learned positions; some layers see the whole context, others a window. Source: Black et al. 2021."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.errors import CheckpointError
from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.models.base import CacheSpec, Config, DecoderModel, widest


class Attention(nn.Module):
    """Self-attention whose scores are not scaled."""

    def __init__(self, config: Config, layer: int, window: int | None) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.layer = layer
        self.window = window
        self.heads = config["num_heads"]
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return self.out_proj(batch.attend(self.layer, query, key, value, scale=1.0, window=self.window))


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        inner = config.get("intermediate_size") or 4 * hidden
        self.c_fc = nn.Linear(hidden, inner)
        self.c_proj = nn.Linear(inner, hidden)
        self.activation = activation(config.get("activation_function", "gelu_new"))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, layer: int, window: int | None) -> None:
        super().__init__()
        eps = config.get("layer_norm_epsilon", 1e-5)
        self.ln_1 = nn.LayerNorm(config["hidden_size"], eps)
        self.attn = nn.ModuleDict({"attention": Attention(config, layer, window)})
        self.ln_2 = nn.LayerNorm(config["hidden_size"], eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        x = x + self.attn["attention"](self.ln_1(x), batch)
        return x + self.mlp(self.ln_2(x))


class GPTNeo(DecoderModel):
    """GPTNeoForCausalLM."""

    base_prefix = "transformer."
    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    tied: ClassVar = {"lm_head.weight": "wte.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden = config["hidden_size"]
        self.wte = nn.Embedding(config["vocab_size"], hidden)
        self.wpe = nn.Embedding(config["max_position_embeddings"], hidden)
        windows = _windows(config)
        self.widest_window = widest(windows)
        self.h = nn.ModuleList(Layer(config, i, window) for i, window in enumerate(windows))
        self.ln_f = nn.LayerNorm(hidden, config.get("layer_norm_epsilon", 1e-5))
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(len(self.h), config["num_heads"], hidden // config["num_heads"])

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.wte(batch.token_ids) + self.wpe(batch.positions)  # (num_tokens, hidden_size)
        for layer in self.h:
            x = layer(x, batch)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def _windows(config: Config) -> list[int | None]:
    """Per layer how many tokens it sees; None for all."""
    types = config.get("attention_types") or [[["global", "local"], 12]]
    kinds = [kind for pattern, count in types for kind in pattern * count]
    if len(kinds) != config["num_layers"] or not {"global", "local"}.issuperset(kinds):
        raise CheckpointError(
            f"config.json: attention_types must name {config['num_layers']} layers (num_layers), each global or "
            f"local; it names {len(kinds)}: {', '.join(map(str, kinds))}"
        )
    window = config.get("window_size", 256)
    return [window if kind == "local" else None for kind in kinds]
