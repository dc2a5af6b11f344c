"""Attention with linear biases: instead of position embeddings, far keys lose score. Source: Press et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from langport.layers.attention import AttentionGroup


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) what a key loses per position, in float32: a geometric sequence.

    For a number of heads that is no power of two, every other slope of the next power of two follows.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-4.0 * n / power) for n in range(1, 2 * power, 2)]
    return torch.tensor((slopes + between)[:heads])


def hide_future(group: AttentionGroup, biases: Tensor) -> Tensor:
    """biases, broadcast to (num_seqs, heads, max_query, context), with minus infinity at keys after the query."""
    return biases.masked_fill(key_positions(group) > group.positions[:, None, :, None], float("-inf"))


def key_positions(group: AttentionGroup) -> Tensor:
    """(context,)"""
    return torch.arange(group.context_size, device=group.positions.device)
