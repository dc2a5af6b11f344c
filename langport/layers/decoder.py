"""The two halves of most decoder layers: rotary self-attention and the gated MLP.

What families do in between (norms on query and key, other scales) is a method to override, not a flag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from langport.layers.activations import activation
from langport.layers.attention import DecoderBatch
from langport.ops.native import Kernels

Gate = Literal["silu", "tanh_gelu"]
GATES: dict[str, Gate] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_fast": "tanh_gelu",
    "gelu_new": "tanh_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
}
"""Activations by which the native kernels gate, by the names of configurations."""
Turn = Callable[[Tensor], Tensor]
"""Turns query or key (num_tokens, heads, head_dim) by the positions of the step's tokens."""


def head_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """Number of query heads, of key-value heads, and the size of every head."""
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads


class SelfAttention(nn.Module):
    """Rotary self-attention with grouped query heads. Source: Ainslie et al. 2023.

    Scores are multiplied by `scale` (default: 1 / sqrt(head_dim)), bounded by `softcap`, and see `window` tokens.
    """

    def __init__(
        self,
        config: dict[str, Any],
        layer: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = head_shape(config)
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.window = window
        self.softcap = softcap
        self.sizes = tuple(n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads))
        self.qkv_proj = nn.Linear(config["hidden_size"], sum(self.sizes), bias=qkv_bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config["hidden_size"], bias=out_bias)

    def forward(self, x: Tensor, batch: DecoderBatch, turn: Turn | None) -> Tensor:
        """x (num_tokens, hidden_size) in and out; `turn` None: this layer knows no positions."""
        query, key, value = self.qkv_proj(x).split(self.sizes, dim=-1)
        query, key = self.normalize(
            query.unflatten(-1, (self.heads, self.head_dim)), key.unflatten(-1, (self.kv_heads, self.head_dim))
        )
        if turn is not None:
            query, key = turn(query), turn(key)
        value = value.unflatten(-1, (self.kv_heads, self.head_dim))
        out = batch.attend(self.layer, query, key, value, scale=self.scale, window=self.window, softcap=self.softcap)
        return self.o_proj(out)

    def normalize(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to query and key (num_tokens, heads or kv_heads, head_dim) before they are turned."""
        return query, key


class GatedMLP(nn.Module):
    """act(gate) * up, then down. Source: Shazeer 2020."""

    kernels: Kernels | None = None

    def __init__(self, hidden: int, inner: int, activation_name: str, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = activation(activation_name)
        self.gate: Gate | None = GATES.get(activation_name)
        """How the native kernels compute the activation times up; None: torch does."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        if self.kernels is None or self.gate is None:
            return self.down_proj(self.activation(gate) * up)
        multiply = self.kernels.silu_mul if self.gate == "silu" else self.kernels.gelu_mul
        return self.down_proj(multiply(gate, up))
