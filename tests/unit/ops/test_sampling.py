"""Native draws against the plain way in float64, against torch, and bit for bit against themselves in other company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langport.ops import native, sampling
from langport.ops.edits import Edit, EditKind, apply_edits
from langport.ops.native import Kernels
from langport.ops.sampling import Asked, Drawn

INF = float("inf")
SIZE = 3000
"""Several blocks, and more than the heads that are sorted first (kHeads); the last block is not full."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def here() -> bool:
    try:
        return bool(native.levels_here())
    except native.NotBuilt:
        return False


pytestmark = pytest.mark.skipif(not here(), reason="the native kernels are not built")


def sample(kernels: Kernels, logits: Tensor, asked: list[Asked], **more: Any) -> Drawn:
    before = logits.clone()
    drawn = sampling.sample(kernels, logits, asked, **more)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())
    return drawn


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOGITS: dict[str, Callable[[int, int], Tensor]] = {
    "peaked": lambda rows, size: torch.randn(rows, size, generator=random()) * 4,
    "flat": lambda rows, size: torch.randn(rows, size, generator=random(1)) * 0.1,
    "ties": lambda rows, size: torch.randint(-2, 3, (rows, size), generator=random(2)).float(),
    "few": lambda rows, size: torch.randn(rows, size, generator=random(3)).index_fill(
        1, torch.arange(min(30, size), size), -INF
    ),
    "equal": lambda rows, size: torch.full((rows, size), 3.25),
    "wide": lambda rows, size: torch.randn(rows, size, generator=random(4)) * 60,
}
# No top_p bounds a whole number of equally likely tokens: there a rounding decides.
FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_p": {"top_p": 0.9031},
    "low top_p": {"top_p": 0.0517},
    "none of top_p": {"top_p": 0.0},
    "high top_p": {"top_p": 0.9999},
    "top_k": {"top_k": 40},
    "top_k of 1": {"top_k": 1},
    "long top_k": {"top_k": 2000, "top_p": 0.9903},
    "more than all": {"top_k": 10**9},
    "min_p": {"min_p": 0.02},
    "low min_p": {"min_p": 1e-4},
    "min_p of 1": {"min_p": 1.0},
    "together": {"top_p": 0.793, "top_k": 200, "min_p": 0.001},
}


def chances(row: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """In float64: the chances of tokens in the order in which they are added up, and their ids."""
    scaled = (row.float() / asked.temperature).double()
    if not (asked.top_k or asked.top_p < 1 or asked.min_p):
        return scaled.softmax(-1), torch.arange(len(row))
    values, order = scaled.sort(descending=True, stable=True)
    found = values.softmax(-1)
    if asked.top_k:
        found[asked.top_k :] = 0.0
    before = found.cumsum(-1) - found
    keep = ((before < asked.top_p * found.sum() - 1e-15) | (asked.top_p >= 1)) & (found >= asked.min_p * found[0])
    keep[0] = True
    return found.where(keep, 0.0), order


def agrees(row: Tensor, asked: Asked, token: int) -> bool:
    """Whether the token is what the number draws, or would be if the number or a bound were another by a rounding."""
    found, order = chances(row, asked)
    place = int((order == token).nonzero()[0, 0])
    through = found.cumsum(-1) / found.sum()
    return bool(through[place] - found[place] / found.sum() - 3e-6 <= asked.number <= through[place] + 3e-6)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("size", [5, 300, SIZE])
def test_draws_are_those_of_the_plain_way(kernels: Kernels, kind: str, size: int) -> None:
    asked = [
        Asked(number, temperature, **filters)
        for filters in FILTERS.values()
        for number, temperature in ((0.0, 1.0), (0.3, 0.7), (0.77, 1.3), (1 - 2**-53, 1.0))
    ]
    logits = LOGITS[kind](len(asked), size)
    for row, one, token in zip(logits, asked, sample(kernels, logits, asked).tokens, strict=True):
        assert agrees(row, one, token), one


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_likeliest_is_the_first_of_equals(kernels: Kernels, dtype: torch.dtype) -> None:
    for size in (1, 3, 255, 256, 257, SIZE):
        for kind in ("peaked", "ties", "equal"):
            logits = LOGITS[kind](20, size).to(dtype)
            assert sample(kernels, logits, [Asked(0.0, 0.0)] * 20).tokens == logits.float().argmax(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_company(kernels: Kernels, dtype: torch.dtype) -> None:
    numbers = np.random.default_rng(0).random(60)
    filters = [*FILTERS.values(), {"logprobs": 3}, {"logprobs": 0, "top_p": 0.9}]
    asked = [
        Asked(number, (0.0, 0.5, 1.0, 3.0)[n % 4], **filters[n % len(filters)])
        for n, number in enumerate(numbers.tolist())
    ]
    rows = [LOGITS[kind](10, SIZE).to(dtype) for kind in LOGITS]
    logits = torch.stack([rows[n % len(rows)][n // len(rows)] for n in range(60)])
    whole = sample(kernels, logits, asked)
    for threads in (1, 2, 3):
        kernels.set_threads(threads)
        assert sample(kernels, logits, asked) == whole
        for n in range(60):
            alone, count = sample(kernels, logits[n : n + 1], asked[n : n + 1]), asked[n].logprobs or 0
            assert alone.tokens == whole.tokens[n : n + 1]
            assert alone.logprobs == whole.logprobs[n : n + 1]
            assert alone.likeliest[0] == whole.likeliest[n][:count]
            assert alone.likeliest_logprobs[0] == whole.likeliest_logprobs[n][:count]


@pytest.mark.parametrize("count", [0, 1, 5, 20, SIZE // 256 + 2, SIZE, SIZE + 1])
@pytest.mark.parametrize("kind", ["peaked", "ties", "few", "wide"])
def test_log_probabilities_are_those_of_torch(kernels: Kernels, kind: str, count: int) -> None:
    logits = LOGITS[kind](6, SIZE)
    drawn = sample(kernels, logits, [Asked(0.4, 0.8, logprobs=count)] * 6)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(
        torch.tensor(drawn.logprobs),
        expected.gather(1, torch.tensor(drawn.tokens)[:, None])[:, 0],
        rtol=1e-6,
        atol=1e-5,
    )
    ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    assert drawn.likeliest == ids.tolist()
    torch.testing.assert_close(torch.tensor(drawn.likeliest_logprobs), expected.gather(1, ids), rtol=1e-6, atol=1e-5)


def test_edits_and_masks_are_those_of_torch(kernels: Kernels) -> None:
    logits = LOGITS["peaked"](8, SIZE)
    places = torch.randint(SIZE, (8, 40), generator=random(7)).tolist()
    edits = []
    for row in range(6):
        edits.append(Edit(row, EditKind.PENALIZE, sorted(set(places[row])), penalty=1.3))
        if row == 1:
            edits.append(Edit(row, EditKind.KEEP_ONLY, sorted(set(places[row]))))
        edits.append(Edit(row, EditKind.ADD, places[row], [0.25 * n for n in range(40)]))
        edits.append(Edit(row, EditKind.BAN, places[row][:10]))
        if row == 2:
            edits.append(Edit(row, EditKind.FORCE, places[row][5:8]))
    masks = torch.randint(-(2**31), 2**31, (8, -(-SIZE // 32)), generator=random(8)).int()
    masks[2:4] = -1
    masks[5, 3:] = 0
    allowed = torch.from_numpy(np.unpackbits(masks.numpy().view(np.uint8), axis=1, count=SIZE, bitorder="little"))
    expected = logits.clone()
    apply_edits(expected, edits)
    expected[allowed == 0] = -INF
    asked = [Asked(0.1 * n, 1.0 if n % 2 else 0.0, logprobs=6) for n in range(8)]
    with_masks = ([0, 1, 4, 5, 6, 7], masks[[0, 1, 4, 5, 6, 7]])
    drawn = sample(kernels, logits, asked, edits=edits, masks=with_masks, scores_processed=True)
    for row, one, token in zip(expected, asked, drawn.tokens, strict=True):
        assert agrees(row, one, token) if one.temperature else token == row.argmax()
    scores = expected.log_softmax(-1)
    ids = expected.sort(dim=-1, descending=True, stable=True).indices[:, :6]
    assert drawn.likeliest == ids.tolist()
    torch.testing.assert_close(torch.tensor(drawn.likeliest_logprobs), scores.gather(1, ids), rtol=1e-6, atol=1e-5)
    raw = sample(kernels, logits, asked, edits=edits, masks=with_masks)
    assert raw.tokens == drawn.tokens
    assert raw.likeliest == logits.sort(dim=-1, descending=True, stable=True).indices[:, :6].tolist()
    torch.testing.assert_close(
        torch.tensor(raw.logprobs),
        logits.log_softmax(-1).gather(1, torch.tensor(raw.tokens)[:, None])[:, 0],
        rtol=1e-6,
        atol=1e-5,
    )


def test_where_bans_leave_the_grammar_nothing_only_the_grammar_counts(kernels: Kernels) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    masks = ([0, 1, 2], torch.tensor([[0b0110]] * 3, dtype=torch.int32))
    edits = [Edit(0, EditKind.BAN, [1, 2]), Edit(1, EditKind.BAN, [2])]
    for temperature in (0.0, 0.01):
        drawn = sample(kernels, logits, [Asked(0.5, temperature)] * 3, edits=edits, masks=masks)
        assert drawn.tokens == [2, 1, 2]


def test_a_token_that_the_logits_do_not_know_changes_nothing(kernels: Kernels) -> None:
    edits = [Edit(0, EditKind.ADD, [-1, 4, 2**31 - 1], [9.0, 9.0, 9.0]), Edit(0, EditKind.BAN, [3, 4])]
    assert sample(kernels, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), [Asked(0.0, 0.0)], edits=edits).tokens == [2]


@pytest.mark.parametrize("number", [float("nan"), INF, -INF])
def test_logits_that_are_no_numbers_give_some_token(kernels: Kernels, number: float) -> None:
    for size in (5, SIZE):
        one = torch.zeros(1, size)
        one[0, 3] = number
        for logits in (one, torch.full((1, size), number)):
            for filters in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"top_k": 2900, "top_p": 0.5}):
                for temperature in (0.0, 1.0):
                    drawn = sample(kernels, logits, [Asked(0.999, temperature, **filters, logprobs=4)])
                    assert 0 <= drawn.tokens[0] < size
                    assert all(0 <= token < size for token in drawn.likeliest[0])


def test_rows_may_lie_apart(kernels: Kernels) -> None:
    logits = LOGITS["peaked"](4, 2 * SIZE)
    asked = [Asked(0.1 * n, 0.9, top_p=0.95) for n in range(4)]
    for part in (logits[:, 7 : 7 + SIZE], logits[:, ::2], logits[::2]):
        assert sample(kernels, part, asked[: len(part)]) == sample(kernels, part.clone(), asked[: len(part)])
