"""The sampler's short cuts give what the plain way gives: everything sorted, everything added up from the left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from langport.engine import sampler
from langport.engine.grammar import Masks
from langport.engine.rng import uniform
from langport.engine.rules import GenerationRules
from langport.engine.sampler import Sampler
from langport.engine.sequence import Sequence
from langport.ops import native
from langport.ops.native import Kernels
from langport.types import GenerateRequest, SamplingParams

SIZE = 5000
INF = float("inf")
torch.set_num_threads(1)


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    """What draws: torch's operators (None), and this process's kernels."""
    found = native.kernels()
    if request.param == "native" and found is None:
        pytest.skip("the native kernels are not built, or turned off")
    return found if request.param == "native" else None


def sampler_of(kernels: Kernels | None) -> Sampler:
    return Sampler((2,), GenerationRules(), kernels=kernels)


def sequence(seed: int, num_tokens: int = 0, **sampling: Any) -> Sequence:
    request = GenerateRequest("r", [1], SamplingParams(**{"max_tokens": 99, **sampling}))
    found = Sequence(request, 0, seed, tokens=[1])
    for _ in range(num_tokens):
        found.append(5)
    return found


def plainly(logits: Tensor, drawn: Sequence) -> int:
    """One token from one row of logits, in float64."""
    asked = drawn.sampling
    if asked.temperature == 0:
        return int(logits.argmax())
    values, order = (logits / asked.temperature).sort(descending=True, stable=True)
    chances = values.double().softmax(-1)
    if asked.top_k:
        chances[asked.top_k :] = 0.0
    before = chances.cumsum(-1) - chances
    keep = (before < asked.top_p * chances.sum()) & (chances >= asked.min_p * chances[0])
    keep[0] = True
    chances = chances.where(keep, 0.0)
    if asked.typical_p < 1:
        chances = chances / chances.sum()
        information = -chances.log()
        surprise = (information - (chances * information).nan_to_num(0.0).sum()).abs()
        nearest = surprise.argsort(stable=True)
        inside = chances[nearest].cumsum(-1) - chances[nearest] < asked.typical_p
        inside[0] = True
        chances = chances.where(torch.zeros_like(inside).scatter(0, nearest, inside), 0.0)
    if not (asked.top_k or asked.top_p < 1 or asked.min_p or asked.typical_p < 1):
        chances, order = (logits / asked.temperature).double().softmax(-1), torch.arange(len(logits))
    through = chances.cumsum(-1)
    number = uniform([drawn.seed], [drawn.num_output_tokens])[0]
    return int(order[torch.searchsorted(through, number * through[-1], right=True)])


LOGITS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "peaked": lambda generator: torch.randn(SIZE, generator=generator) * 4,
    "flat": lambda generator: torch.randn(SIZE, generator=generator) * 0.1,
    "ties": lambda generator: torch.randint(-2, 3, (SIZE,), generator=generator).float(),
    "few": lambda generator: torch.randn(SIZE, generator=generator).index_fill(0, torch.arange(30, SIZE), -INF),
}
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_p": {"top_p": 0.9},
    "all of top_p": {"top_p": 0.0},
    "top_k": {"top_k": 40},
    "long top_k": {"top_k": 3000, "top_p": 0.99},
    "exact top_k": {"top_k": sampler.HEAD},
    "min_p": {"min_p": 0.02},
    "typical_p": {"typical_p": 0.5},
    "together": {"top_p": 0.793, "top_k": 200, "min_p": 0.001, "typical_p": 0.873},
    "wide": {"top_p": 0.999, "typical_p": 0.99},
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("asked", ASKED)
def test_draws_are_those_of_the_plain_way(kernels: Kernels | None, kind: str, asked: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.stack([LOGITS[kind](generator) for _ in range(20)])
    drawn = [sequence(7 * n, n, temperature=0.5 + n % 3, **ASKED[asked]) for n in range(len(logits))]
    found = [token for token, _ in sampler_of(kernels).sample(logits.clone(), drawn)]
    assert found == [plainly(row, one) for row, one in zip(logits, drawn, strict=True)]


def test_neighbours_change_nothing(kernels: Kernels | None) -> None:
    generator = torch.Generator().manual_seed(2)
    kinds = [*LOGITS.values()]
    asked = [*ASKED.values(), {"temperature": 0.0}, {"logprobs": 3}, {"logprobs": 3, "temperature": 0.0}]
    drawn = [sequence(n, n, **asked[n % len(asked)]) for n in range(60)]
    logits = torch.stack([kinds[n % len(kinds)](generator) for n in range(60)])
    draw = sampler_of(kernels)
    together = draw.sample(logits.clone(), drawn)
    assert together == [draw.sample(logits[n : n + 1].clone(), drawn[n : n + 1])[0] for n in range(60)]
    assert together[::-1] == draw.sample(logits.flip(0), drawn[::-1])


@pytest.mark.parametrize("size", [3, 511, 512, 513, 5000])
def test_the_largest_is_the_first_of_equals(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for logits in (
        torch.randint(-3, 4, (50, size), generator=generator).float(),
        torch.randn(50, size, generator=generator),
        torch.full((1, size), -INF),
    ):
        assert sampler._largest(logits).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("count", [0, 1, 5, 299, 300])
def test_the_likeliest_are_the_beginning_of_a_stable_sort(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    some = torch.randint(-9, 9, (20, 300), generator=generator).float()
    banned = some.index_fill(1, torch.arange(4, 300), -INF)
    for logits in (some, torch.randn(20, 300, generator=generator), banned):
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        found = sampler._likeliest(logits, count)
        torch.testing.assert_close(found, (values[:, :count], ids[:, :count]), rtol=0, atol=0)


def test_a_token_without_a_chance_is_never_drawn() -> None:
    # The random number nearest to 1, and sums that differ in their last bits.
    generator = torch.Generator().manual_seed(3)
    chances = torch.rand(200, SIZE, generator=generator).where(torch.rand(200, SIZE, generator=generator) < 0.02, 0.0)
    chances[:, -600:] = 0.0
    drawn = [sequence(0)] * 200
    numbers = torch.full((200,), 1 - 2.0**-53, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "uniform", lambda keys, counters: numbers.numpy())
        places = sampler._invert(chances, drawn)
    assert (chances.gather(1, places[:, None]) > 0).all()
    last = torch.tensor([row.nonzero().max() for row in chances])
    assert (places == last).all()


def test_the_whole_of_a_small_vocabulary_is_its_head(kernels: Kernels | None) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(30, 100, generator=generator)
    drawn = [sequence(n, top_p=0.95, typical_p=0.9) for n in range(30)]
    found = [token for token, _ in sampler_of(kernels).sample(logits.clone(), drawn)]
    assert found == [plainly(row, one) for row, one in zip(logits, drawn, strict=True)]


PENALTIES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.7},
    {"logit_bias": {7: 9.0, 11: -100.0}},
    {"bad_words": ((5,), (4, 6))},
    {"allowed_token_ids": (3, 8, 20, 21)},
    {"min_tokens": 50, "stop_token_ids": (9,)},
    {"typical_p": 0.8},
    {"top_p": 0.7, "presence_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": {3: 2.0}},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores_processed", [False, True])
def test_the_kernels_draw_what_torch_draws(dtype: torch.dtype, scores_processed: bool) -> None:
    kernels = native.kernels()
    if kernels is None:
        pytest.skip("the native kernels are not built, or turned off")
    rules = GenerationRules(suppress_tokens=(1, 12), forced_eos_token_ids=(2, 40), no_repeat_ngram_size=3)
    drawn = [
        sequence(n, 4 + n % 3, **{"max_tokens": 7 if n % 11 == 3 else 99, "logprobs": n % 4, **PENALTIES[n % 10]})
        for n in range(60)
    ]
    logits = (torch.randn(60, SIZE, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)
    bits = torch.randint(-(2**31), 2**31, (30, -(-SIZE // 32)), generator=torch.Generator().manual_seed(6)).int()
    bits[:, :2] = -1  # what the rules force may follow
    for masks in (None, Masks([*range(1, 60, 2)], lambda: bits)):
        torch_found, found = (
            Sampler((2,), rules, scores_processed=scores_processed, kernels=by).sample(logits.clone(), drawn, masks)
            for by in (None, kernels)
        )
        assert [token for token, _ in found] == [token for token, _ in torch_found]
        for (_, one), (_, other) in zip(found, torch_found, strict=True):
            assert one is not None
            assert other is not None
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5, rel=1e-6)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert [value for _, value in one.top] == pytest.approx(
                [value for _, value in other.top], abs=1e-5, rel=1e-6
            )
