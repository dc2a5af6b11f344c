"""torch's matrix product of rows on a CPU, as nearly the same in any company as can be had of it.

In float32 torch multiplies one to three rows by other routines than four or more, which add up in another order. So
fewer are filled up to four, and on one thread a row's bits then do not depend on how many there are. What is left is in
docs/same-answer.md.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS = 4


def steady_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in_features) times the transposed weight, plus bias: (..., out_features)."""
    num_rows = x.numel() // max(x.shape[-1], 1)
    if num_rows >= MIN_ROWS or num_rows == 0 or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    filled = F.pad(x.reshape(num_rows, -1), (0, 0, 0, MIN_ROWS - num_rows))
    return F.linear(filled, weight, bias)[:num_rows].view(*x.shape[:-1], -1)


class SteadyLinear(nn.Linear):
    """An `nn.Linear` that fills up its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return steady_linear(x, self.weight, self.bias)


def make_steady(model: nn.Module) -> None:
    """Let every plain `nn.Linear` of `model` fill up its rows; its weights stay where they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = SteadyLinear
