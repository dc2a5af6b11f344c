"""The same answer whatever the neighbours: alone, among others, in pieces, after preemption, with a prefix hit.

Tokens are equal, and log-probabilities bit for bit. That holds with the native kernels; torch's own products depend on
the number of rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from langport.engine.engine import GenerationEngine
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.engine.inprocess import Stream, collect, load, run

Checkpoints = Callable[[str], Path]
TARGETS = ("greedy", "drawn", "filtered")
KEPT = {"ignore_eos": True, "logprobs": 3}
NUM_OTHERS = 29
"""Beside the three targets: a batch of 32."""

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["llama", "qwen3", "mistral", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(checkpoint: Checkpoints, family: str, dtype: str) -> Callable[..., GenerationEngine]:
    def make(**settings: object) -> GenerationEngine:
        core = load(checkpoint(family), dtype=dtype, max_model_len=160, **settings)
        assert isinstance(core, GenerationEngine)
        assert core.runner.model.kernels is not None
        return core

    return make


_alone: dict[tuple[str, str], dict[tuple[str, int], Stream]] = {}


@pytest.fixture
def alone(engine: Callable[..., GenerationEngine], family: str, dtype: str) -> dict[tuple[str, int], Stream]:
    """Each target in an engine of its own; computed once."""
    if (family, dtype) not in _alone:
        _alone[family, dtype] = {key: s for target in targets() for key, s in run(engine(), [target]).items()}
    return _alone[family, dtype]


def targets(**sampling: object) -> list[GenerateRequest]:
    """Prompts of unlike lengths, so that they share no steps' shapes."""
    kinds = ({"temperature": 0.0}, {"seed": 11}, {"seed": 12, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": 0.4})
    return [
        GenerateRequest(name, tokens(name, length), SamplingParams(max_tokens=24, **{**KEPT, **kind, **sampling}))  # type: ignore[arg-type]
        for name, length, kind in zip(TARGETS, (45, 70, 17), kinds, strict=True)
    ]


def others() -> list[GenerateRequest]:
    """Company of mixed lengths and kinds."""
    rng = random.Random(5)
    return [
        GenerateRequest(
            f"other{number}",
            tokens(f"other{number}", rng.randrange(1, 100)),
            SamplingParams(
                max_tokens=rng.randrange(1, 50),
                temperature=rng.choice([0.0, 1.0]),
                top_k=rng.choice([0, 5]),
                logprobs=rng.choice([None, 5]),
                ignore_eos=True,
            ),
        )
        for number in range(NUM_OTHERS)
    ]


def tokens(seed: str, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 250) for _ in range(count)]


def check(streams: dict[tuple[str, int], Stream], alone: dict[tuple[str, int], Stream]) -> None:
    for key, expected in alone.items():
        assert streams[key].tokens == expected.tokens
        assert streams[key].logprobs == expected.logprobs


def mixed(requests: list[GenerateRequest]) -> list[GenerateRequest]:
    """The targets in the middle of the others."""
    company = others()
    return company[:9] + requests[:1] + company[9:20] + requests[1:] + company[20:]


def test_among_31_others(engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]) -> None:
    check(run(engine(), mixed(targets())), alone)


def test_arriving_one_by_one(engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]) -> None:
    core, streams = engine(max_num_seqs=8), dict[tuple[str, int], Stream]()
    for request in mixed(targets()):
        assert core.add(request) is None
        collect(core, streams)
    while core.has_work:
        collect(core, streams)
    check(streams, alone)


@pytest.mark.parametrize("budget", [5, 16, 37])
def test_prompts_cut_in_pieces(
    engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream], budget: int
) -> None:
    check(run(engine(max_num_batched_tokens=budget, max_num_seqs=4), mixed(targets())), alone)


def test_after_preemption(engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]) -> None:
    block_bytes = sum(cache.keys[0].nbytes + cache.values[0].nbytes for cache in engine().runner.caches)
    # The targets start with 10 blocks and end with 14; a window of 24 tokens lets them share 6.
    settings = {"max_num_batched_tokens": 16, "max_num_seqs": 4} if engine().scheduler.window else {}
    num_blocks = 6 if settings else 11
    core = engine(kv_cache_memory=num_blocks * block_bytes, **settings)
    streams: dict[tuple[str, int], Stream] = {}
    for request in targets():
        assert core.add(request) is None
    preempted = set()
    while core.has_work:
        collect(core, streams)
        preempted |= {s.request_id for s in core.scheduler.waiting if s.num_output_tokens}
    assert preempted
    check(streams, alone)


def test_with_a_prefix_hit(engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]) -> None:
    core = engine()
    for request in targets():
        run(core, [request])
    again = run(core, targets())
    check(again, alone)
    assert all(again[name, 0].cached_tokens > 0 for name in TARGETS)


def test_prompt_log_probabilities(engine: Callable[..., GenerationEngine]) -> None:
    requests = targets(prompt_logprobs=2)
    alone = {key: stream for request in requests for key, stream in run(engine(), [request]).items()}
    for settings in ({}, {"max_num_batched_tokens": 19}):
        streams = run(engine(**settings), mixed(requests))
        check(streams, alone)
        for key, expected in alone.items():
            assert streams[key].prompt_logprobs == expected.prompt_logprobs
            assert len(expected.prompt_logprobs) > 16


def test_on_more_threads(engine: Callable[..., GenerationEngine], alone: dict[tuple[str, int], Stream]) -> None:
    check(run(engine(num_threads=3), mixed(targets())), alone)
