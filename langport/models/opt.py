"""OPT: learned positions, norms before each part (after it in the 350m model). Source: Zhang et al. 2022."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.models.base import CacheSpec, Config, DecoderModel

POSITION_OFFSET = 2
"""The first rows of the position table are never used, as in BART."""


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config.get("enable_bias", True)
        self.layer = layer
        self.heads = config["num_attention_heads"]
        self.scale = (hidden // self.heads) ** -0.5
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.out_proj = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        return self.out_proj(batch.attend(self.layer, query, key, value, scale=self.scale))


class Layer(nn.Module):
    """Attention and MLP, each beside a residual; norms come before a part, or after its residual is added."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, bias = config["hidden_size"], config.get("enable_bias", True)
        self.is_norm_first = config.get("do_layer_norm_before", True)
        self.self_attn = Attention(config, layer)
        self.self_attn_layer_norm = _norm(config)
        self.fc1 = nn.Linear(hidden, config["ffn_dim"], bias=bias)
        self.fc2 = nn.Linear(config["ffn_dim"], hidden, bias=bias)
        self.final_layer_norm = _norm(config)
        self.activation = activation(config.get("activation_function", "relu"))

    def forward(self, x: Tensor, batch: DecoderBatch) -> Tensor:
        if self.is_norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), batch)
            return x + self.mlp(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x + self.self_attn(x, batch))
        return self.final_layer_norm(x + self.mlp(x))

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class OPT(DecoderModel):
    """OPTForCausalLM."""

    base_prefix = "model."
    aliased_prefixes: ClassVar = {"decoder.": ""}
    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
    tied: ClassVar = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        hidden, vocab = config["hidden_size"], config["vocab_size"]
        words = config.get("word_embed_proj_dim") or hidden
        self.embed_tokens = nn.Embedding(vocab, words)
        self.embed_positions = nn.Embedding(config["max_position_embeddings"] + POSITION_OFFSET, hidden)
        self.project_in = nn.Linear(words, hidden, bias=False) if words != hidden else nn.Identity()
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        is_normed = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm")
        self.final_layer_norm = _norm(config) if is_normed else nn.Identity()
        self.project_out = nn.Linear(hidden, words, bias=False) if words != hidden else nn.Identity()
        self.lm_head = nn.Linear(words, vocab, bias=False)
        heads = config["num_attention_heads"]
        self.cache_spec = CacheSpec(len(self.layers), heads, hidden // heads)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.project_in(self.embed_tokens(batch.token_ids))  # (num_tokens, hidden_size)
        x = x + self.embed_positions(batch.positions + POSITION_OFFSET)
        for layer in self.layers:
            x = layer(x, batch)
        return self.project_out(self.final_layer_norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config["hidden_size"], elementwise_affine=config.get("layer_norm_elementwise_affine", True))
