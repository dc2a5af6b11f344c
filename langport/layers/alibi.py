"""Attention with linear biases: instead of position embeddings, far keys lose score. Source: Press et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from langport.layers.attention import AttentionGroup, DecoderBatch


def alibi_slopes(heads: int, steepness: float = 8.0) -> Tensor:
    """(heads,) what a key loses per position, in float32: a geometric sequence that ends at 2 ** -steepness.

    For a number of heads that is no power of two, every other slope of the next power of two follows.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-steepness * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-steepness * n / (2 * power)) for n in range(1, 2 * power, 2)]
    return torch.tensor((slopes + between)[:heads])


def distance_biases(batch: DecoderBatch, slopes: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Per group (num_seqs, heads, max_query, context). Distances are exact for near keys in 16 bits, too."""
    steep = slopes[:, None, None]
    return [
        hide_future(group, steep * (key_positions(group) - group.positions[:, None, :, None])).to(dtype)
        for group in batch.groups
    ]


def hide_future(group: AttentionGroup, biases: Tensor) -> Tensor:
    """biases, broadcast to (num_seqs, heads, max_query, context), with minus infinity at keys after the query."""
    return biases.masked_fill(key_positions(group) > group.positions[:, None, :, None], float("-inf"))


def key_positions(group: AttentionGroup) -> Tensor:
    """(context,)"""
    return torch.arange(group.context_size, device=group.positions.device)
