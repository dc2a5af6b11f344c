"""Projections to query, key and value that a checkpoint stores as one matrix."""

from __future__ import annotations

from torch import Tensor


def split_grouped(fused: Tensor, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take apart a projection whose rows hold, per key-value head: its query heads, then the key, then the value.

    GPT-NeoX, BLOOM, Falcon and GPTBigCode order theirs so, with one to all of the query heads per key-value head.
    fused (num_tokens, (heads + 2 * kv_heads) * head_dim)
    Returns query (num_tokens, heads, head_dim), key and value (num_tokens, kv_heads, head_dim).
    """
    grouped = fused.view(fused.shape[0], kv_heads, -1, head_dim)
    query, key, value = grouped.split((grouped.shape[2] - 2, 1, 1), dim=2)
    return query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)
