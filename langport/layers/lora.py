"""Low-rank additions to linear layers, chosen token by token: several adapters in one batch. Source: Hu et al. 2021."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from langport.layers.linear import QuantizedLinear
from langport.ops.native import NativeLinear
from langport.ops.rows import steady_linear

Linear = nn.Linear | QuantizedLinear | NativeLinear
"""What an adapter can change."""


@dataclass
class ActiveAdapters:
    """Which tokens of the current step use which adapter; one object shared by all layers of a model."""

    gates: dict[int, Tensor] = field(default_factory=dict)
    """Adapter number to (num_tokens, 1) of ones where it is used and zeros elsewhere; adapters without tokens are left
    out, so that a step without adapters costs nothing."""

    def set(self, adapters: Sequence[int | None], counts: Sequence[int], num_tokens: int, like: Tensor) -> None:
        """Each sequence's adapter and number of tokens; a batch may end with more rows, which use none.

        The gates have the type and device of `like`.
        """
        self.gates = {}
        used = sorted({number for number in adapters if number is not None})
        if used:
            owners = np.full(num_tokens, -1)
            owners[: sum(counts)] = np.repeat([-1 if number is None else number for number in adapters], counts)
            owner = torch.from_numpy(owners).to(like.device)[:, None]
            self.gates = {number: (owner == number).to(like.dtype) for number in used}


class LoraLinear(nn.Module):
    """A linear layer and what adapters add to it."""

    def __init__(self, base: Linear, active: ActiveAdapters) -> None:
        super().__init__()
        self.base = base
        self.active = active
        self.adapters: dict[int, tuple[Tensor, Tensor]] = {}
        """Adapter number to its matrices down (rank, in_features) and up (out_features, rank), scaling included."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., num_tokens, in_features) to (..., num_tokens, out_features)."""
        out = self.base(x)
        # All rows go through every adapter of the step: gates keep the sums of each row the same for any batch.
        for number, gate in self.active.gates.items():
            if number in self.adapters:
                down, up = self.adapters[number]
                out = out + steady_linear(steady_linear(x, down) * gate, up)
        return out
