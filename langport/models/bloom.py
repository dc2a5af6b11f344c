"""BLOOM: linear biases instead of positions (ALiBi). Source: BigScience Workshop 2022."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.alibi import alibi_slopes, distance_biases
from langport.layers.attention import DecoderBatch
from langport.layers.fused import split_grouped
from langport.models.base import CacheSpec, Config, DecoderModel
from langport.ops.attention import KeyBiases

SPELLINGS = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
"""{name that some checkpoints use: name here}"""


class Attention(nn.Module):
    """Self-attention; query, key and value lie together per head."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.layer = layer
        self.heads = config["n_head"]
        self.head_dim = hidden // self.heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, batch: DecoderBatch, biases: KeyBiases) -> Tensor:
        query, key, value = split_grouped(self.query_key_value(x), self.heads, self.head_dim)
        return self.dense(batch.attend(self.layer, query, key, value, scale=self.head_dim**-0.5, biases=biases))


class MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, 4 * hidden)
        self.dense_4h_to_h = nn.Linear(4 * hidden, hidden)
        self.activation = activation("gelu_new")

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    """Attention and MLP behind norms; the residual is what comes before the norm, or what comes after it."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config.get("layer_norm_epsilon", 1e-5)
        self.is_residual_normed = config.get("apply_residual_connection_post_layernorm", False)
        self.input_layernorm = nn.LayerNorm(hidden, eps)
        self.self_attention = Attention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(hidden, eps)
        self.mlp = MLP(hidden)

    def forward(self, x: Tensor, batch: DecoderBatch, biases: KeyBiases) -> Tensor:
        normed = self.input_layernorm(x)
        x = (normed if self.is_residual_normed else x) + self.self_attention(normed, batch, biases)
        normed = self.post_attention_layernorm(x)
        return (normed if self.is_residual_normed else x) + self.mlp(normed)


class Bloom(DecoderModel):
    """BloomForCausalLM."""

    base_prefix = "transformer."
    tied: ClassVar = {"lm_head.weight": "word_embeddings.weight"}

    def __init__(self, config: Config) -> None:
        config = config | {here: config[there] for there, here in SPELLINGS.items() if there in config}
        super().__init__(config)
        hidden, eps = config["hidden_size"], config.get("layer_norm_epsilon", 1e-5)
        self.word_embeddings = nn.Embedding(config["vocab_size"], hidden)
        self.word_embeddings_layernorm = nn.LayerNorm(hidden, eps)
        self.h = nn.ModuleList(Layer(config, i) for i in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(hidden, eps)
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        self.cache_spec = CacheSpec(config["n_layer"], config["n_head"], hidden // config["n_head"])

    def prepare(self, device: str, max_model_len: int) -> None:
        slopes = alibi_slopes(self.config["n_head"]).to(device)
        self.biases = distance_biases(slopes, max_model_len)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.word_embeddings_layernorm(self.word_embeddings(batch.token_ids))  # (num_tokens, hidden_size)
        for layer in self.h:
            x = layer(x, batch, self.biases)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)
