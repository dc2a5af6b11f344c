"""The next token of every row of a step's logits in one call of the native kernels.

`engine.sampler` says what is drawn, and draws the same with torch's operators where there are no kernels. A row's token
and log-probabilities depend on that row alone: never on the rows beside it, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, byref, c_int32, c_int64, c_void_p
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langport.ops.edits import Edit
from langport.ops.native import DTYPES, Kernels

MAX_COLUMNS = 2**31 - 1
"""Token ids are 32-bit numbers in the kernels."""

_ROW = np.dtype(
    [
        ("number", np.float64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("top_k", np.int64),
        ("first_edit", np.int64),
        ("num_edits", np.int64),
        ("mask", np.int64),
        ("temperature", np.float32),
        ("num_likeliest", np.int32),
    ]
)
"""SampleRow of csrc/sample.h."""
_EDIT = np.dtype([("kind", np.int32), ("penalty", np.float32), ("first", np.int64), ("count", np.int64)])
"""SampleEdit."""


class _Job(Structure):
    _fields_ = (
        ("dtype", c_int32),
        ("scores_processed", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("stride", c_int64),
        ("logits", c_void_p),
        ("asked", c_void_p),
        ("edits", c_void_p),
        ("edit_columns", c_void_p),
        ("edit_values", c_void_p),
        ("masks", c_void_p),
        ("mask_words", c_int64),
        ("most_likeliest", c_int64),
        ("tokens", c_void_p),
        ("logprobs", c_void_p),
        ("likeliest", c_void_p),
        ("likeliest_logprobs", c_void_p),
    )


class Asked(NamedTuple):
    """What one row's token is drawn by."""

    number: float
    """From 0 to below 1: the place in the distribution."""
    temperature: float
    """0: the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logprobs: int | None = None
    """None: no log-probabilities; k: of the token and of the k likeliest."""


class Drawn(NamedTuple):
    """What was drawn from the rows."""

    tokens: list[int]
    logprobs: list[float]
    """Of the tokens, where they were asked for."""
    likeliest: list[list[int]]
    """Token ids, the likeliest first, as many as some row asked for: what a row did not ask for has no meaning."""
    likeliest_logprobs: list[list[float]]


def can_sample(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype in DTYPES and logits.shape[1] <= MAX_COLUMNS


def sample(
    kernels: Kernels,
    logits: Tensor,
    asked: Sequence[Asked],
    edits: Sequence[Edit] = (),
    masks: tuple[Sequence[int], Tensor] | None = None,
    *,
    scores_processed: bool = False,
) -> Drawn:
    """Draw a token from each row of logits (num_rows, vocab_size), which stay as they are.

    `edits` are in the order of their rows. `masks`: the rows that have one, and bits (num_masks, words), int32: one per
    token, set where it is allowed. Log-probabilities describe the raw logits or, with `scores_processed`, those behind
    edits and temperature.
    """
    num_rows, size = logits.shape
    assert len(asked) == num_rows
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    masked, bits = ((), None) if masks is None else masks
    rows = _rows(asked, edits, masked)
    changes, columns, values = _changes(edits)
    most = min(max((row.logprobs or 0 for row in asked), default=0), size)
    tokens = np.zeros(num_rows, np.int64)
    logprobs = np.zeros(num_rows, np.float32)
    likeliest = np.zeros((num_rows, most), np.int64)
    likeliest_logprobs = np.zeros((num_rows, most), np.float32)
    if bits is not None:
        assert bits.dtype == torch.int32
        bits = bits.contiguous()
    job = _Job(
        DTYPES[logits.dtype],
        scores_processed,
        num_rows,
        size,
        logits.stride(0),
        logits.data_ptr(),
        rows.ctypes.data,
        changes.ctypes.data,
        columns.ctypes.data,
        values.ctypes.data,
        None if bits is None else bits.data_ptr(),
        0 if bits is None else bits.shape[1],
        most,
        *(found.ctypes.data for found in (tokens, logprobs, likeliest, likeliest_logprobs)),
    )
    kernels.library.langport_sample(byref(job))
    return Drawn(tokens.tolist(), logprobs.tolist(), likeliest.tolist(), likeliest_logprobs.tolist())


def _rows(asked: Sequence[Asked], edits: Sequence[Edit], masked: Sequence[int]) -> NDArray[np.void]:
    counts, masks = [0] * len(asked), [-1] * len(asked)
    for edit in edits:
        counts[edit.row] += 1
    for place, row in enumerate(masked):
        masks[row] = place
    rows, first = [], 0
    for one, count, mask in zip(asked, counts, masks, strict=True):
        wanted = -1 if one.logprobs is None else one.logprobs
        rows.append((one.number, one.top_p, one.min_p, one.top_k, first, count, mask, one.temperature, wanted))
        first += count
    return np.array(rows, dtype=_ROW)


def _changes(edits: Sequence[Edit]) -> tuple[NDArray[np.void], NDArray[np.int32], NDArray[np.float32]]:
    """The edits, and the columns and values of all of them one after the other."""
    changes, first = [], 0
    for edit in edits:
        changes.append((edit.kind, edit.penalty, first, len(edit.tokens)))
        first += len(edit.tokens)
    columns = np.fromiter(chain.from_iterable(edit.tokens for edit in edits), np.int32, first)
    values = np.zeros(first, np.float32)
    for edit, (_, _, begin, count) in zip(edits, changes, strict=True):
        if edit.values:
            values[begin : begin + count] = edit.values
    return np.array(changes, dtype=_EDIT), columns, values
