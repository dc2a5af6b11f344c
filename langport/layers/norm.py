"""Normalization layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langport.ops.native import Kernels


class RMSNorm(nn.Module):
    """Root mean square norm without bias. Source: Zhang and Sennrich 2019."""

    kernels: Kernels | None = None

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.size = size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, (self.size,), self.weight, self.eps)
