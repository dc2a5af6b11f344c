"""What a decoder's attention reads and writes in one step: the paged cache, through groups of sequences.

The tokens of all sequences lie flat, one row each (num_tokens,), so everything but attention is one matrix product
for the whole step. For attention the sequences are grouped by their number of queries, rounded up to a power of two:
all decoding sequences are one group, and pieces of prompts of like length another. No loop runs over sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from langport.ops.attention import KeyBiases, LayerCache, additive_mask, fold_mask, grouped_attention
from langport.ops.native import Kernels, Sequences, can_attend


@dataclass
class AttentionGroup:
    """Sequences with about the same number of queries, padded to the longest."""

    rows: Tensor
    """(num_seqs, max_query) rows of the flat tokens; padding repeats the sequence's first row."""
    positions: Tensor
    """(num_seqs, max_query) position of each query in its sequence."""
    block_tables: Tensor
    """(num_seqs, max_blocks)"""
    context_size: int
    """Cached positions that `block_tables` spans: max_blocks * block_size."""
    real: Tensor | None
    """Indices into the flattened rows that are no padding; None when there is none."""
    cross_tables: Tensor | None = None
    cross_lengths: Tensor | None = None
    """(num_seqs,) encoder positions, for encoder-decoders."""
    masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    """Masks are the same in every layer: made once per step."""

    def causal_mask(self, dtype: torch.dtype, window: int | None, fold: int) -> Tensor:
        """(num_seqs, 1, fold * max_query, context): a query sees itself and the `window` - 1 tokens before it."""
        key = (dtype, window, fold)
        if key not in self.masks:
            columns = torch.arange(self.context_size, device=self.positions.device)
            position = self.positions[:, None, :, None]
            visible = columns <= position
            if window is not None:
                visible &= columns > position - window
            self.masks[key] = fold_mask(additive_mask(visible, dtype), 1, fold)
        return self.masks[key]

    def bias_mask(self, biases: KeyBiases, dtype: torch.dtype, kv_heads: int, fold: int) -> Tensor:
        """(num_seqs, kv_heads, fold * max_query, context): `biases` where a query sees, minus infinity elsewhere."""
        key = (biases, dtype, fold)
        if key not in self.masks:
            self.masks[key] = fold_mask(biases.mask(self.positions, self.context_size, dtype), kv_heads, fold)
        return self.masks[key]

    def cross_mask(self, dtype: torch.dtype, context: int) -> Tensor:
        """(num_seqs, 1, 1, context): every query sees the whole encoder output of its sequence."""
        assert self.cross_lengths is not None
        key = ("cross", dtype)
        if key not in self.masks:
            columns = torch.arange(context, device=self.cross_lengths.device)
            self.masks[key] = additive_mask(columns < self.cross_lengths[:, None, None, None], dtype)
        return self.masks[key]


@dataclass
class DecoderBatch:
    """Everything a decoder's forward pass needs beside its weights."""

    token_ids: Tensor
    """(num_tokens,)"""
    positions: Tensor
    """(num_tokens,)"""
    slots: Tensor
    """(num_tokens,) where each token's keys and values are stored."""
    make_groups: Callable[[], list[AttentionGroup]]
    caches: list[LayerCache]
    """One per layer."""
    lengths: Tensor | None = None
    """(num_tokens,) known tokens of each token's sequence, those that this step does not reach included."""
    kernels: Kernels | None = None
    """Native kernels that attend instead of torch, wherever they cover what is asked; they read `sequences`."""
    sequences: Sequences | None = None
    cross_sequences: Sequences | None = None
    """The same with what the encoders left, for encoder-decoders."""
    has_adapters: bool = False
    """Some sequence of the step uses a LoRA adapter."""

    @cached_property
    def groups(self) -> list[AttentionGroup]:
        """What torch's operators attend by; native kernels never ask for it."""
        return self.make_groups()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int | None = None,
        biases: KeyBiases | None = None,
        masks: list[Tensor] | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal self-attention of one layer: stores key and value, then reads each sequence's whole context.

        query (num_tokens, heads, head_dim), key and value (num_tokens, kv_heads, head_dim). `biases` are added to the
        scores; so are `masks`, which hold one tensor (num_seqs, 1 or heads, max_query, context) per group that already
        hides the future; `softcap` bounds the scores before that; `sinks` (heads,) are scores of one more key, whose
        value is zero.
        Returns (num_tokens, heads * head_dim).
        """
        cache = self.caches[layer]
        cache.write(self.slots, key, value)
        if self.sequences is not None and self.kernels is not None and masks is None and can_attend(cache):
            attended = self.kernels.attend(
                query,
                cache,
                self.sequences,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
                biases=biases,
            )
            return attended.flatten(1)
        out = torch.empty_like(query)
        for number, group in enumerate(self.groups):
            keys, values = cache.gather(group.block_tables)
            fold = query.shape[1] // cache.kv_heads
            if masks is not None:
                mask = fold_mask(masks[number], cache.kv_heads, fold)
            elif biases is not None:
                mask = group.bias_mask(biases, query.dtype, cache.kv_heads, fold)
            else:
                mask = group.causal_mask(query.dtype, window, fold)
            attended = grouped_attention(query[group.rows], keys, values, mask, scale, softcap, sinks)
            self._scatter(out, group, attended)
        return out.flatten(1)

    def attend_encoder(self, layer: int, query: Tensor, *, scale: float) -> Tensor:
        """Attention of one decoder layer to the encoder's output; shapes as in `attend`."""
        cache = self.caches[layer]
        if self.cross_sequences is not None and self.kernels is not None and can_attend(cache):
            attended = self.kernels.attend(query, cache, self.cross_sequences, scale=scale, is_causal=False)
            return attended.flatten(1)
        out = torch.empty_like(query)
        for group in self.groups:
            assert group.cross_tables is not None
            keys, values = cache.gather(group.cross_tables)
            mask = group.cross_mask(query.dtype, keys.shape[2])
            self._scatter(out, group, grouped_attention(query[group.rows], keys, values, mask, scale))
        return out.flatten(1)

    @staticmethod
    def _scatter(out: Tensor, group: AttentionGroup, attended: Tensor) -> None:
        rows, flat = group.rows.flatten(), attended.flatten(0, 1)
        if group.real is not None:
            rows, flat = rows[group.real], flat[group.real]
        out.index_copy_(0, rows, flat)
