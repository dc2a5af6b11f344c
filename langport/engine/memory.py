"""How much memory is free, and how large a KV cache may be."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import numpy as np
import torch

from langport.engine.host_memory import free_host_bytes
from langport.errors import CheckpointError, OutOfMemory
from langport.models.base import CacheSpec
from langport.ops.attention import LayerCache, QuantizedCache

BLOCK_SIZE = 16
"""Tokens per block."""
TRIM_INTERVAL_S = 30.0
"""Between two calls that give memory back; one takes some milliseconds."""


def free_memory_bytes(device: str) -> int:
    """Memory that can be taken now: of the GPU, or of the machine within the limits of its control group."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return free_host_bytes()


def choose_num_blocks(
    bytes_per_token: int,
    *,
    max_model_len: int,
    contexts: int,
    window_blocks: int | None,
    max_num_seqs: int,
    budget_bytes: int,
    explicit: bool,
) -> int:
    """Blocks of the cache, the null block included.

    `contexts` is how many full contexts one sequence can hold: 1, or 2 with cross attention. `window_blocks` is what a
    sequence holds at most however long it is, or None. The cache never exceeds what `max_num_seqs` full sequences need.
    Raises: CheckpointError with the figures when one full context does not fit into `budget_bytes`; OutOfMemory when
    those are what is free, and not `explicit`.
    """
    block_bytes = bytes_per_token * BLOCK_SIZE
    per_sequence = blocks_per_sequence(max_model_len, contexts, window_blocks)
    num_blocks = min(budget_bytes // block_bytes, per_sequence * max_num_seqs)
    if num_blocks < per_sequence:
        asked = "--kv-cache-memory allows" if explicit else "this model's share of the free memory is"
        fitting = budget_bytes // block_bytes // contexts * BLOCK_SIZE
        shorter = f"use --max-model-len {fitting} or less, or " if fitting else ""
        raise (CheckpointError if explicit else OutOfMemory)(
            f"one sequence of {max_model_len} tokens needs {_size(per_sequence * block_bytes)} of KV cache, but "
            f"{asked} {_size(budget_bytes)}; {shorter}give more with --kv-cache-memory"
        )
    return num_blocks + 1


def blocks_per_sequence(max_model_len: int, contexts: int, window_blocks: int | None) -> int:
    """What a sequence that fills its context holds at most."""
    whole = contexts * -(-max_model_len // BLOCK_SIZE)
    return whole if window_blocks is None else min(whole, window_blocks)


def allocate_caches(
    spec: CacheSpec, num_blocks: int, dtype: torch.dtype, device: str, *, in_int8: bool = False
) -> list[LayerCache]:
    """Zeroed keys and values of every layer of a model of `dtype`."""
    shape = (num_blocks, spec.kv_heads, BLOCK_SIZE, spec.head_dim)

    def layer() -> LayerCache:
        if not in_int8:
            return LayerCache(_zeros(shape, dtype, device), _zeros(shape, dtype, device))
        keys, values = (_zeros(shape, torch.int8, device) for _ in range(2))
        key_scales, value_scales = (_zeros(shape[:3], torch.float32, device) for _ in range(2))
        return QuantizedCache(keys, values, key_scales, value_scales, dtype)

    return [layer() for _ in range(spec.num_layers)]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks the system for zero pages, which take memory only once they are used; torch writes them all.
    raw = np.zeros(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"


class HeapTrimmer:
    """Gives back to the system what the C library keeps of freed tensors, now and then.

    glibc cannot reuse all holes that batches of ever new shapes leave behind: after half an hour of random requests to
    an embedder one call took its resident memory from 716 to 225 MiB. Does nothing with another C library.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._next_s = clock() + TRIM_INTERVAL_S

    def trim(self) -> bool:
        """Whether it was time to. Cheap to call after every step."""
        if self._trim is None or self._clock() < self._next_s:
            return False
        self._trim(0)
        self._next_s = self._clock() + TRIM_INTERVAL_S
        return True
