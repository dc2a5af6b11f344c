"""One step's tensors: where the scheduler's plain numbers become indices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from langport.engine.blocks import NULL_BLOCK
from langport.engine.scheduler import ScheduledSequence
from langport.layers.attention import AttentionGroup, DecoderBatch
from langport.ops.attention import LayerCache
from langport.ops.native import Kernels, Sequences

Array = NDArray[Any]


def build_batch(
    step: Seq[ScheduledSequence],
    caches: list[LayerCache],
    block_size: int,
    device: str,
    kernels: Kernels | None = None,
) -> DecoderBatch:
    """Lay the scheduled tokens out flat, in the order of `step`."""
    counts = np.array([s.num_rows for s in step], dtype=np.int64)
    starts = np.cumsum(counts) - counts  # first row of each sequence
    first_positions = np.array([s.sequence.num_computed_tokens for s in step], dtype=np.int64)
    offsets = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    positions = np.repeat(first_positions, counts) + offsets
    tables = _table_array([s.sequence.block_table for s in step])
    owner = np.repeat(np.arange(len(step)), counts)
    slots = tables[owner, positions // block_size] * block_size + positions % block_size
    token_ids: list[int] = []
    for scheduled in step:
        token_ids += scheduled.token_ids

    def make_groups() -> list[AttentionGroup]:
        return [
            _build_group(np.array(members), step, counts, starts, first_positions, tables, block_size, device)
            for members in _group_by_length(counts)
        ]

    return DecoderBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        make_groups=make_groups,
        caches=caches,
        lengths=torch.from_numpy(np.repeat([len(s.sequence.tokens) for s in step], counts)).to(device),
        kernels=kernels,
        sequences=Sequences(starts, counts, first_positions, tables) if kernels else None,
        cross_sequences=_cross_sequences(step, starts, counts) if kernels else None,
        has_adapters=any(s.sequence.lora is not None for s in step),
    )


def _cross_sequences(step: Seq[ScheduledSequence], starts: Array, counts: Array) -> Sequences | None:
    """What each sequence's encoder left; None for decoder-only models."""
    sequences = [scheduled.sequence for scheduled in step]
    if sequences[0].encoder_tokens is None:
        return None
    lengths = np.array([len(s.encoder_tokens or ()) for s in sequences], dtype=np.int64)
    return Sequences(starts, counts, lengths, _table_array([s.cross_block_table for s in sequences]))


def _group_by_length(counts: Array) -> list[list[int]]:
    """Indices of sequences whose number of queries rounds up to the same power of two."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, count in enumerate(counts.tolist()):
        groups[(count - 1).bit_length()].append(index)
    return list(groups.values())


def _build_group(
    members: Array,
    step: Seq[ScheduledSequence],
    counts: Array,
    starts: Array,
    first_positions: Array,
    tables: Array,
    block_size: int,
    device: str,
) -> AttentionGroup:
    lengths = counts[members]
    max_query = int(lengths.max())
    columns = np.arange(max_query)
    is_real = columns < lengths[:, None]
    offsets = np.where(is_real, columns, 0)
    context = int((first_positions[members] + lengths).max())
    num_blocks = -(-context // block_size)
    group = AttentionGroup(
        rows=torch.from_numpy(starts[members, None] + offsets).to(device),
        positions=torch.from_numpy(first_positions[members, None] + offsets).to(device),
        block_tables=torch.from_numpy(tables[members, :num_blocks]).to(device),
        context_size=num_blocks * block_size,
        real=None if is_real.all() else torch.from_numpy(np.flatnonzero(is_real)).to(device),
    )
    if step[members[0]].sequence.encoder_tokens is not None:
        sequences = [step[member].sequence for member in members]
        cross_lengths = [len(s.encoder_tokens or ()) for s in sequences]
        group.cross_tables = torch.from_numpy(_table_array([s.cross_block_table for s in sequences])).to(device)
        group.cross_lengths = torch.tensor(cross_lengths, device=device)
    return group


def _table_array(tables: list[list[int]]) -> Array:
    """(num_seqs, longest table), padded with the null block."""
    width = max(map(len, tables))
    return np.array([table + [NULL_BLOCK] * (width - len(table)) for table in tables], dtype=np.int64)
