"""Attention of encoders: every real position sees every other, in padded batches (num_seqs, max_length)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from langport.ops.attention import additive_mask


def padding_mask(lengths: Tensor, max_length: int, dtype: torch.dtype) -> Tensor:
    """(num_seqs, 1, 1, max_length): 0 at real positions, minus infinity at padding."""
    columns = torch.arange(max_length, device=lengths.device)
    return additive_mask(columns < lengths[:, None, None, None], dtype)


def bidirectional_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """query, key, value (num_seqs, max_length, heads, head_dim); returns (num_seqs, max_length, heads * head_dim)."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2).flatten(2)
