"""Llama, the frame that its many relatives share, and the nearest of them: Mistral, Qwen2, Qwen3.

A relative overrides the part in which it differs: `attention`, `mlp`, `layer`, `norm_layer`, `embed`, `logits`.
Sources: Touvron et al. 2023; Jiang et al. 2023; Qwen2 technical report 2024; Qwen3 technical report 2025.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from langport.layers.attention import DecoderBatch
from langport.layers.decoder import GatedMLP, SelfAttention, Turn, head_shape
from langport.layers.norm import RMSNorm
from langport.layers.rotary import Parameters, RotaryEmbedding, rope_parameters
from langport.models.base import CacheSpec, Config, DecoderModel, widest
from langport.ops.step import NativeStep


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, norms: tuple[nn.Module, nn.Module], self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norms
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), batch, turn)
        return x + self.mlp(self.post_attention_layernorm(x))


class ParallelLayer(nn.Module):
    """Attention and MLP read the same normalized states. Source: GPT-J, Wang and Komatsuzaki 2021."""

    def __init__(self, norm: nn.Module, self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = norm
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        normed = self.input_layernorm(x)
        return x + self.self_attn(normed, batch, turn) + self.mlp(normed)


class Llama(DecoderModel):
    """LlamaForCausalLM."""

    base_prefix = "model."
    stacked: ClassVar = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    tied: ClassVar = {"lm_head.weight": "embed_tokens.weight"}
    defaults: ClassVar[Config] = {}
    """What transformers' configuration class fills in where config.json is silent, if `get` here would not."""
    is_interleaved: ClassVar[bool] = False
    """How heads are turned: see `RotaryEmbedding`."""
    step: NativeStep | None = None
    """All layers in one call, with the same results, for steps without adapters; None: layer by layer."""

    def __init__(self, config: Config) -> None:
        super().__init__(self.defaults | config)
        hidden = config["hidden_size"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
        self.layers = nn.ModuleList(self.layer(number) for number in range(config["num_hidden_layers"]))
        self.norm = self.norm_layer()
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)
        _, kv_heads, self.head_dim = head_shape(self.config)
        self.cache_spec = CacheSpec(len(self.layers), kv_heads, self.head_dim)
        self.widest_window = widest(self.window(number) for number in range(len(self.layers)))

    def layer(self, number: int) -> nn.Module:
        return Layer((self.norm_layer(), self.norm_layer()), self.attention(number), self.mlp(number))

    def attention(self, number: int) -> SelfAttention:
        has_bias = bool(self.config.get("attention_bias"))
        return SelfAttention(self.config, number, qkv_bias=has_bias, out_bias=has_bias, window=self.window(number))

    def mlp(self, number: int) -> nn.Module:
        config = self.config
        return GatedMLP(
            config["hidden_size"],
            config["intermediate_size"],
            config.get("hidden_act", "silu"),
            bias=bool(config.get("mlp_bias")),
        )

    def norm_layer(self) -> nn.Module:
        return RMSNorm(self.config["hidden_size"], self.config.get("rms_norm_eps", 1e-6))

    def window(self, number: int) -> int | None:
        """The sliding window of one layer, in tokens, or None for full attention."""
        return None

    def prepare(self, device: str, max_model_len: int) -> None:
        self.rotary = RotaryEmbedding(
            self.rope_parameters(), self.head_dim, max_model_len, device, is_interleaved=self.is_interleaved
        )
        self.trained_length = self.rotary.trained_length

    def rope_parameters(self) -> Parameters:
        return rope_parameters(self.config)

    def forward(self, batch: DecoderBatch) -> Tensor:
        x = self.embed(batch.token_ids)  # (num_tokens, hidden_size)
        if self.step is not None and not batch.has_adapters:
            return self.step.run(x, batch)
        turns: dict[RotaryEmbedding | None, Turn | None] = {None: None}
        for number, layer in enumerate(self.layers):
            rotary = self.rotary_of(number)
            if rotary is not None and rotary not in turns:
                turns[rotary] = turn_of(rotary, batch, x)
            x = layer(x, batch, turns[rotary])
        return self.norm(x)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.embed_tokens(token_ids)

    def rotary_of(self, number: int) -> RotaryEmbedding | None:
        """What turns a layer's queries and keys; None: the layer knows no positions."""
        return self.rotary if self.has_positions(number) else None

    def has_positions(self, number: int) -> bool:
        """Whether a layer turns its queries and keys."""
        return True

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def turn_of(rotary: RotaryEmbedding, batch: DecoderBatch, x: Tensor) -> Turn:
    """The turn by the positions of this step's tokens, in the type of the states x."""
    return partial(rotary.apply, tables=rotary.tables(batch.positions, x.dtype, batch.lengths))


class Mistral(Llama):
    """MistralForCausalLM: a sliding window in every layer."""

    defaults: ClassVar = {"num_key_value_heads": 8, "sliding_window": 4096}

    def window(self, number: int) -> int | None:
        window: int | None = self.config.get("sliding_window")
        return window


class Qwen2(Llama):
    """Qwen2ForCausalLM: query, key and value have biases; the upper layers can have a sliding window."""

    defaults: ClassVar = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

    def attention(self, number: int) -> SelfAttention:
        return SelfAttention(self.config, number, qkv_bias=True, window=self.window(number))

    def window(self, number: int) -> int | None:
        if not self.config.get("use_sliding_window"):
            return None
        kinds = self.config.get("layer_types")
        is_sliding = kinds[number] == "sliding_attention" if kinds else number >= self.config["max_window_layers"]
        return self.config["sliding_window"] if is_sliding else None


class NormedAttention(SelfAttention):
    """Query and key are normalized per head. Source: Qwen3 technical report 2025."""

    def __init__(self, config: Config, layer: int, *, window: int | None) -> None:
        has_bias = bool(config.get("attention_bias"))
        super().__init__(config, layer, qkv_bias=has_bias, out_bias=has_bias, window=window)
        eps = config.get("rms_norm_eps", 1e-6)
        self.q_norm = RMSNorm(self.head_dim, eps)
        self.k_norm = RMSNorm(self.head_dim, eps)

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(query), self.k_norm(key)


class Qwen3(Qwen2):
    """Qwen3ForCausalLM: query and key are normalized per head."""

    defaults: ClassVar = Qwen2.defaults | {"head_dim": 128}

    def attention(self, number: int) -> SelfAttention:
        return NormedAttention(self.config, number, window=self.window(number))
