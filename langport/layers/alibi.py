"""Attention with linear biases: instead of position embeddings, far keys lose score. Source: Press et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor

from langport.ops.attention import KeyBiases


def alibi_slopes(heads: int, steepness: float = 8.0) -> Tensor:
    """(heads,) what a key loses per position, in float32: a geometric sequence that ends at 2 ** -steepness.

    For a number of heads that is no power of two, every other slope of the next power of two follows.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-steepness * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-steepness * n / (2 * power)) for n in range(1, 2 * power, 2)]
    return torch.tensor((slopes + between)[:heads])


def distance_biases(slopes: Tensor, max_model_len: int) -> KeyBiases:
    """What keys lose by their distance, exact for near keys in 16 bits, too."""
    return KeyBiases.by_distance(-slopes[:, None] * torch.arange(max_model_len, device=slopes.device))
