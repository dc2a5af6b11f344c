"""Gemma, Gemma 2 and Gemma 3 (text).

The embedding is scaled up, norms multiply by one plus their weight; Gemma 2 adds norms after attention and MLP, bounds
on scores and logits, and windows; Gemma 3 has norms on query and key, and turns local and global layers differently.
Sources: Gemma Team 2024 (arXiv 2403.08295), 2024 (2408.00118), 2025 (2503.19786).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.layers.decoder import GatedMLP, SelfAttention, Turn
from langport.layers.rotary import RotaryEmbedding, rope_parameters
from langport.models.base import Config
from langport.models.llama import Llama
from langport.ops.native import Kernels


class GemmaNorm(nn.Module):
    """Root mean square norm, multiplied by 1 + weight in float32."""

    kernels: Kernels | None = None

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.rms_norm(x, self.weight, self.eps, offset=1.0)
        return F.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight.float(), self.eps).to(x.dtype)


class Gemma(Llama):
    """GemmaForCausalLM."""

    defaults: ClassVar[Config] = {"num_key_value_heads": 16, "head_dim": 256}

    def mlp(self, number: int) -> nn.Module:
        config = self.config
        name = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
        # The first configurations say gelu and mean its approximation, which the model was trained with.
        name = "gelu_pytorch_tanh" if name == "gelu" else name
        return GatedMLP(config["hidden_size"], config["intermediate_size"], name)

    def norm_layer(self) -> nn.Module:
        return GemmaNorm(self.config["hidden_size"], self.config.get("rms_norm_eps", 1e-6))

    def embed(self, token_ids: Tensor) -> Tensor:
        x = self.embed_tokens(token_ids)
        # The factor is rounded to the type of the weights, as it was in training.
        return x * torch.tensor(self.config["hidden_size"] ** 0.5, dtype=x.dtype).item()


class SandwichLayer(nn.Module):
    """Attention and MLP between two norms each."""

    def __init__(self, norms: list[nn.Module], self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norms[:2]
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norms[2:]
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), batch, turn))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma2(Gemma):
    """Gemma2ForCausalLM."""

    defaults: ClassVar[Config] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }

    def layer(self, number: int) -> nn.Module:
        return SandwichLayer([self.norm_layer() for _ in range(4)], self.attention(number), self.mlp(number))

    def attention(self, number: int) -> SelfAttention:
        config = self.config
        has_bias = bool(config.get("attention_bias"))
        return SelfAttention(
            config,
            number,
            qkv_bias=has_bias,
            out_bias=has_bias,
            scale=config["query_pre_attn_scalar"] ** -0.5,
            window=self.window(number),
            softcap=config["attn_logit_softcapping"],
        )

    def layer_type(self, number: int) -> str:
        """`sliding_attention` or `full_attention`: without a list, the last of every few layers is full."""
        kinds = self.config.get("layer_types")
        if kinds:
            kind: str = kinds[number]
            return kind
        return "sliding_attention" if (number + 1) % self.config["sliding_window_pattern"] else "full_attention"

    def window(self, number: int) -> int | None:
        return self.config["sliding_window"] if self.layer_type(number) == "sliding_attention" else None

    def logits(self, hidden: Tensor) -> Tensor:
        logits, cap = super().logits(hidden), self.config["final_logit_softcapping"]
        return logits if cap is None else activation("tanh")(logits / cap) * cap


class Gemma3Attention(SelfAttention):
    """Query and key are normalized per head."""

    def __init__(self, config: Config, layer: int, *, scale: float, window: int | None) -> None:
        has_bias = bool(config.get("attention_bias"))
        super().__init__(config, layer, qkv_bias=has_bias, out_bias=has_bias, scale=scale, window=window)
        eps = config.get("rms_norm_eps", 1e-6)
        self.q_norm = GemmaNorm(self.head_dim, eps)
        self.k_norm = GemmaNorm(self.head_dim, eps)

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(query), self.k_norm(key)


class Gemma3(Gemma2):
    """Gemma3ForCausalLM: five local layers to each global one, which alone is stretched to long contexts."""

    defaults: ClassVar[Config] = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "max_position_embeddings": 131072,
    }

    def attention(self, number: int) -> SelfAttention:
        scale = self.config["query_pre_attn_scalar"] ** -0.5
        return Gemma3Attention(self.config, number, scale=scale, window=self.window(number))

    def prepare(self, device: str, max_model_len: int) -> None:
        config = self.config
        # Older files know one `rope_scaling`, for the global layers, and a second base for the local ones.
        local = config | {"rope_theta": config["rope_local_base_freq"]}
        if "rope_scaling" in config:
            local |= {"rope_scaling": None}
        settings = {
            "full_attention": rope_parameters(config, "full_attention"),
            "sliding_attention": rope_parameters(local, "sliding_attention"),
        }
        self.rotaries = {
            kind: RotaryEmbedding(parameters, self.head_dim, max_model_len, device)
            for kind, parameters in settings.items()
        }

    def rotary_of(self, number: int) -> RotaryEmbedding | None:
        return self.rotaries[self.layer_type(number)]
