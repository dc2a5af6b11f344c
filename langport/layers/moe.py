"""Mixture of experts: every token is computed by the few experts that a router chooses for it.

Source: Shazeer et al. 2017; Switch Transformers, Fedus et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

STACKED_EXPERTS = {f"experts.{name}": f"experts.{{}}.{name}.weight" for name in ("gate_up_proj", "down_proj")}
"""How transformers 5 names all experts of a layer together, and the experts of `SparseMoE`."""


class SparseMoE(nn.Module):
    """A router and its experts, each an MLP from (n, hidden_size) to the same.

    `renormalizes`: the chosen experts' shares add up to 1 rather than to their part of the router's softmax.
    """

    def __init__(self, hidden: int, experts: Iterable[nn.Module], top_k: int, *, renormalizes: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gate = nn.Linear(hidden, len(self.experts), bias=False)
        self.top_k = top_k
        self.renormalizes = renormalizes

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.gate(x).softmax(-1, dtype=torch.float32).topk(self.top_k)  # (num_tokens, top_k)
        if self.renormalizes:
            shares = shares / shares.sum(-1, keepdim=True)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)  # pairs of token and expert, sorted by expert
        counts = flat.bincount(minlength=len(self.experts)).tolist()
        rows = (order // self.top_k).split(counts)
        parts = shares.flatten()[order, None].split(counts)
        out = torch.zeros_like(x)
        # Experts in order, so a token's parts are added in the same order whatever its neighbours.
        for expert, row, share in zip(self.experts, rows, parts, strict=True):
            if len(row):
                out.index_add_(0, row, (expert(x[row]) * share).to(x.dtype))
        return out
