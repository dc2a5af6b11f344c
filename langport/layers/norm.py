"""Normalization layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from langport.ops.native import DTYPES, Kernels


class LayerNorm(nn.LayerNorm):
    """Layer norm of x, or of x plus a residual. Source: Ba et al. 2016."""

    kernels: Kernels | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.kernels is not None and x.dtype in DTYPES:
            return self.kernels.layer_norm(x, self.weight, self.bias, self.eps, residual)
        return super().forward(x if residual is None else x + residual)


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
