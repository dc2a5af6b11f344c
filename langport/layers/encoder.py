"""What encoders compute with: tokens that lie flat, without padding, and attention of a sequence to all of itself.

On a CPU the native kernels attend sequence by sequence. Elsewhere torch attends over sequences padded to the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from langport.ops.attention import CONTEXT_TILE, additive_mask
from langport.ops.native import DTYPES, Kernels


@dataclass(frozen=True, eq=False)
class DistanceBiases:
    """What a model adds to scores, per head, by the distance from the query to the key, in both directions."""

    table: Tensor
    """(heads, 2 * max_length - 1 + CONTEXT_TILE) in float32; the last CONTEXT_TILE columns change nothing."""
    own_column: int
    """Of a key at the query's own position."""

    @classmethod
    def of(cls, values: Tensor) -> DistanceBiases:
        """values (heads, 2 * max_length - 1), of the distances from -max_length + 1 to max_length - 1."""
        return cls(F.pad(values.float(), (0, CONTEXT_TILE)).contiguous(), values.shape[1] // 2)

    def between(self, length: int) -> Tensor:
        """(heads, length, length): of every query and key."""
        positions = torch.arange(length, device=self.table.device)
        return self.table[:, self.own_column + positions - positions[:, None]]


@dataclass(eq=False)
class EncoderBatch:
    """Everything an encoder's forward pass needs beside its weights."""

    token_ids: Tensor
    """(num_tokens,) of all sequences, one after the other"""
    positions: Tensor
    """(num_tokens,) in their sequences"""
    offsets: NDArray[np.int64]
    """(num_seqs + 1,) where each sequence begins, and where the last one ends."""
    kernels: Kernels | None = None
    """Native kernels that attend instead of torch."""
    is_second: Tensor | None = None
    """(num_tokens,) which tokens belong to their sequence's second text; None: none does."""

    @classmethod
    def of(
        cls,
        inputs: list[list[int]],
        device: str,
        kernels: Kernels | None = None,
        second_text: list[int] | None = None,
    ) -> EncoderBatch:
        """The token ids of some sequences, none of them empty.

        `second_text`: where each sequence's second text begins; its length where it has none.
        """
        lengths = np.array([len(tokens) for tokens in inputs], dtype=np.int64)
        offsets = np.concatenate(([0], lengths.cumsum())).astype(np.int64)
        positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        flat = np.fromiter((token for tokens in inputs for token in tokens), np.int64, int(offsets[-1]))
        is_second = None
        if second_text is not None:
            is_second = torch.from_numpy(positions >= np.repeat(second_text, lengths)).to(device)
        token_ids = torch.from_numpy(flat).to(device)
        return cls(token_ids, torch.from_numpy(positions).to(device), offsets, kernels, is_second)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        sizes: list[int] = np.diff(self.offsets).tolist()
        return sizes

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, biases: DistanceBiases | None = None
    ) -> Tensor:
        """Softmax attention inside each sequence; query, key and value (num_tokens, heads, head_dim).

        `biases` are added to the scores. Returns (num_tokens, heads * head_dim).
        """
        if self.kernels is not None and query.dtype in DTYPES:
            table, own_column = (None, 0) if biases is None else (biases.table, biases.own_column)
            out = self.kernels.attend_spans(
                query, key, value, self.offsets, scale=scale, biases=table, own_column=own_column
            )
            return out.flatten(1)
        rows, is_real = self._padding
        mask = additive_mask(is_real[:, None, None], query.dtype)
        if biases is not None:
            mask = mask + biases.between(rows.shape[1]).to(query.dtype)
        query, key, value = (part[rows].transpose(1, 2) for part in (query, key, value))
        padded = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return padded.transpose(1, 2)[is_real].flatten(1)

    @cached_property
    def _padding(self) -> tuple[Tensor, Tensor]:
        """(num_seqs, max_length) rows, of which padding repeats the sequence's first; and which are no padding."""
        lengths = np.diff(self.offsets)
        columns = np.arange(lengths.max())
        is_real = columns < lengths[:, None]
        rows = self.offsets[:-1, None] + np.where(is_real, columns, 0)
        device = self.token_ids.device
        return torch.from_numpy(rows).to(device), torch.from_numpy(is_real).to(device)
