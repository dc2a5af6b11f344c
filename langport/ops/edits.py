"""Changes to the logits of a step before tokens are drawn from them, and how torch makes them.

`csrc/sample.cpp` makes the same changes, row by row.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class EditKind(enum.IntEnum):
    """What is done to a row; in the order in which it is done. The numbers are those of `csrc/sample.h`."""

    PENALIZE = 0
    """Positive logits are divided by the penalty, negative ones multiplied. Source: CTRL, Keskar et al. 2019."""
    KEEP_ONLY = 1
    """All others become minus infinity."""
    ADD = 2
    BAN = 3
    """They become minus infinity."""
    FORCE = 4
    """They become 0 and all others minus infinity: equally likely, and whatever was banned, as in transformers."""


class Edit(NamedTuple):
    """One change to one row of the logits."""

    row: int
    kind: EditKind
    tokens: Sequence[int]
    """No token twice, but for ADD and BAN."""
    values: Sequence[float] = ()
    """What ADD adds to each."""
    penalty: float = 1.0


def apply_edits(logits: Tensor, edits: Sequence[Edit]) -> None:
    """Change logits (num_rows, vocab_size) in place. Additions and bans of all rows are one operation each."""
    for kind in EditKind:
        chosen = [edit for edit in edits if edit.kind is kind]
        if not chosen:
            continue
        if kind is EditKind.ADD or kind is EditKind.BAN:
            rows = torch.tensor([edit.row for edit in chosen for _ in edit.tokens], device=logits.device)
            columns = torch.tensor([token for edit in chosen for token in edit.tokens], device=logits.device)
            if kind is EditKind.BAN:
                logits[rows, columns] = float("-inf")
            else:
                values = torch.tensor([value for edit in chosen for value in edit.values])
                logits.index_put_((rows, columns), values.to(logits), accumulate=True)
            continue
        for edit in chosen:
            _change(logits[edit.row], edit)


def _change(row: Tensor, edit: Edit) -> None:
    tokens = torch.tensor(edit.tokens, device=row.device)
    kept = row[tokens]
    match edit.kind:
        case EditKind.PENALIZE:
            kept = torch.where(kept > 0, kept / edit.penalty, kept * edit.penalty)
        case EditKind.KEEP_ONLY:
            row.fill_(float("-inf"))
        case EditKind.FORCE:
            row.fill_(float("-inf"))
            kept = torch.zeros_like(kept)
    row[tokens] = kept
