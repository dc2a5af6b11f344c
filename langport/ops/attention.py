"""Attention over a paged KV cache, in portable torch.

Shapes use these words: num_seqs (sequences in a group), max_query (queries per sequence, padded), context (cached
positions per sequence, padded to whole blocks), kv_heads, fold (query heads per kv head), head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from langport.ops.rows import MIN_ROWS

CONTEXT_TILE = 64
"""Keys that the native kernels read at once."""


@dataclass(frozen=True, eq=False)
class KeyBiases:
    """What a model adds to the scores of keys, per head: by their distance from the query, or by their position."""

    table: Tensor
    """(heads, num_columns) in float32; the last CONTEXT_TILE columns are read, too, and change nothing."""
    own_column: int | None
    """Of a key at the query's own position; the keys before it lie in the columns before. None: a key's column is its
    position."""

    @classmethod
    def by_distance(cls, values: Tensor) -> KeyBiases:
        """values (heads, num_distances): first of the query's own position, then of the keys before it, one by one."""
        return cls(F.pad(values.float().flip(1), (0, CONTEXT_TILE)).contiguous(), values.shape[1] - 1)

    @classmethod
    def by_position(cls, values: Tensor) -> KeyBiases:
        """values (heads, num_positions)."""
        return cls(F.pad(values.float(), (0, CONTEXT_TILE)).contiguous(), None)

    def mask(self, positions: Tensor, context_size: int, dtype: torch.dtype) -> Tensor:
        """For queries at positions (num_seqs, max_query), (num_seqs, heads, max_query, context).

        Keys after the query have minus infinity.
        """
        keys = torch.arange(context_size, device=positions.device)
        query = positions[:, :, None]
        if self.own_column is None:
            biases = self.table[None, :, None, :context_size]
        else:
            columns = self.own_column + (keys - query).clamp(max=0)
            biases = self.table[:, columns].transpose(0, 1)
        return biases.to(dtype).masked_fill((keys > query)[:, None], float("-inf"))


class LayerCache:
    """Keys and values of one layer: (num_blocks, kv_heads, block_size, head_dim) each.

    A head's part of a block is in one piece: read head by head, pieces of a token each would bring half the bandwidth.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.dtype = keys.dtype
        """Of what is written and gathered."""
        _, self.kv_heads, self.block_size, self.head_dim = keys.shape

    def pointers(self) -> tuple[int, int, int | None, int | None]:
        """Where keys, values and their scales, if they have some, begin in memory."""
        return self.keys.data_ptr(), self.values.data_ptr(), None, None

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (num_tokens, kv_heads, head_dim) at `slots` (num_tokens,)."""
        blocks, places = slots // self.block_size, slots % self.block_size
        self.keys[blocks, :, places] = keys
        self.values[blocks, :, places] = values

    def gather(self, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole tables (num_seqs, max_blocks) as (num_seqs, kv_heads, context, head_dim)."""
        return _gathered(self.keys, block_tables), _gathered(self.values, block_tables)


def _gathered(cache: Tensor, block_tables: Tensor) -> Tensor:
    """Of (num_seqs, max_blocks, kv_heads, block_size, ...) the blocks and their places become the context."""
    return cache[block_tables].transpose(1, 2).flatten(2, 3)


SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Keeps zeros zero where there is nothing else."""


class QuantizedCache(LayerCache):
    """The same in 8-bit whole numbers, with a scale for each token and kv head, so that no token changes another."""

    def __init__(
        self, keys: Tensor, values: Tensor, key_scales: Tensor, value_scales: Tensor, dtype: torch.dtype
    ) -> None:
        """keys and values in int8; scales (num_blocks, kv_heads, block_size) in float32."""
        super().__init__(keys, values)
        self.key_scales = key_scales
        self.value_scales = value_scales
        self.dtype = dtype

    def pointers(self) -> tuple[int, int, int | None, int | None]:
        scales = self.key_scales.data_ptr(), self.value_scales.data_ptr()
        return self.keys.data_ptr(), self.values.data_ptr(), *scales

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        blocks, places = slots // self.block_size, slots % self.block_size
        self.keys[blocks, :, places], self.key_scales[blocks, :, places] = in_int8(keys)
        self.values[blocks, :, places], self.value_scales[blocks, :, places] = in_int8(values)

    def gather(self, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        found = [
            _gathered(numbers, block_tables) * _gathered(scales, block_tables)[..., None]
            for numbers, scales in ((self.keys, self.key_scales), (self.values, self.value_scales))
        ]
        return found[0].to(self.dtype), found[1].to(self.dtype)


def in_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and a scale in float32 for each row of x (..., size): x is about their product.

    `csrc/step.inl` does the same, bit for bit.
    """
    x = x.float()
    scales = (x.abs().amax(-1) / 127).clamp(min=SMALLEST_SCALE)
    return (x / scales[..., None]).round().to(torch.int8), scales


def grouped_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention with several query heads per kv head, without repeating keys or values.

    query (num_seqs, max_query, heads, head_dim); keys and values (num_seqs, kv_heads, context, head_dim);
    mask as `fold_mask` makes it, added to the scores. `softcap` bounds the scores: softcap * tanh(score / softcap).
    `sinks` (heads,) are scores of a key without a value, to which a head can give what no other key should get.
    Returns (num_seqs, max_query, heads, head_dim).
    """
    num_seqs, max_query, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    fold = heads // kv_heads
    # Query heads that share a kv head become further rows of the same attention problem.
    folded = query.view(num_seqs, max_query, kv_heads, fold, head_dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(num_seqs, kv_heads, fold * max_query, head_dim)
    num_filling = _num_filling(folded)
    if num_filling:
        folded = F.pad(folded, (0, 0, 0, num_filling))
        mask = mask if mask.shape[2] == 1 else F.pad(mask, (0, 0, 0, num_filling))
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        by_row = None
        if sinks is not None:
            by_row = sinks.view(kv_heads, fold, 1).expand(-1, -1, max_query).reshape(kv_heads, -1)
            by_row = F.pad(by_row, (0, num_filling))
        out = _spelled_out_attention(folded, keys, values, mask, scale, softcap, by_row)
    out = out[:, :, : fold * max_query].reshape(num_seqs, kv_heads, fold, max_query, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(num_seqs, max_query, heads, head_dim)


def _num_filling(query: Tensor) -> int:
    """Rows to add so that torch computes all of them by one routine, which blocks of rows begin from: see `rows`."""
    return -query.shape[2] % MIN_ROWS if query.device.type == "cpu" else 0


def _spelled_out_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """For what PyTorch's own operator has no place. `sinks` (kv_heads, rows of query).

    Sources: Gemma 2 technical report 2024, section 2 (caps); gpt-oss model card 2025, section 2 (sinks).
    """
    scores = (query @ keys.transpose(2, 3)) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores + mask
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    column = sinks[:, :, None].to(scores.dtype).expand(len(scores), -1, -1, 1)
    weights = torch.cat((scores, column), dim=-1).softmax(-1, dtype=torch.float32)
    return weights[..., :-1].to(query.dtype) @ values


def fold_mask(mask: Tensor, kv_heads: int, fold: int) -> Tensor:
    """What `grouped_attention` adds to its scores: (num_seqs, 1 or kv_heads, 1 or fold * max_query, context).

    mask (num_seqs, 1 or heads, max_query, context).
    """
    num_seqs, mask_heads, max_query, context = mask.shape
    if fold == 1 or (mask_heads == 1 and max_query == 1):
        return mask
    if mask_heads == 1:
        return mask[:, :, None].expand(-1, -1, fold, -1, -1).reshape(num_seqs, 1, fold * max_query, context)
    return mask.view(num_seqs, kv_heads, fold * max_query, context)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, minus infinity elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
