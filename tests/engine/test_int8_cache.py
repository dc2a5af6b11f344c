"""A KV cache in 8-bit numbers, on both paths of attention: near the plain one, and the same in any company."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langport.engine.engine import GenerationEngine
from langport.models.fallback import Fallback
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.engine import test_fallback
from tests.engine.inprocess import Stream, collect, load, run
from tests.engine.parity import save_random
from tests.engine.test_invariance import check, mixed, targets, tokens

Checkpoints = Callable[[str], Path]
needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")


def engine(path: Path, **settings: object) -> GenerationEngine:
    core = load(path, **{"kv_cache_dtype": "int8", "max_model_len": 160, **settings})
    assert isinstance(core, GenerationEngine)
    return core


def scored(core: GenerationEngine) -> list[float]:
    """Log-probabilities of prompts' tokens, or where there are none, of greedy answers'."""
    has_encoder = core.decoder_start is not None
    sampling = SamplingParams(max_tokens=6, temperature=0.0, logprobs=0, prompt_logprobs=None if has_encoder else 0)
    asked = [GenerateRequest(f"r{n}", tokens(f"int8-{n}", n), sampling) for n in (9, 70, 120)]
    found: list[float] = []
    for stream in run(core, asked).values():
        entries = stream.logprobs if has_encoder else stream.prompt_logprobs
        found += [entry.logprob for entry in entries if entry is not None]
    return found


def distance(some: list[float], others: list[float]) -> float:
    return statistics.mean(abs(a - b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "t5", "bart", "fallback"])
def test_both_paths_are_near_each_other_and_the_plain_cache(
    family: str, checkpoint: Checkpoints, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = (
        save_random(test_fallback.CONFIGS["gpt_oss-sinks"](), tmp_path) if family == "fallback" else checkpoint(family)
    )
    settings = {"dtype": "float32"}
    core = engine(path, **settings)
    assert isinstance(core.runner.model, Fallback) == (family == "fallback")
    here = scored(core)
    plain = scored(engine(path, kv_cache_dtype="auto", **settings))
    assert 1e-5 < distance(here, plain) < 0.05
    request.getfixturevalue("without_kernels")
    assert distance(scored(engine(path, **settings)), here) < 1e-3


def test_the_same_memory_holds_more_tokens(checkpoint: Checkpoints) -> None:
    plain, small = (
        engine(checkpoint("llama"), kv_cache_dtype=name, kv_cache_memory=200_000, max_num_seqs=200).info
        for name in ("auto", "int8")
    )
    # A head has 16 numbers here: 64 bytes in float32, and 20 with the scale.
    assert (plain.kv_cache_dtype, small.kv_cache_dtype) == ("float32", "int8")
    assert abs(small.kv_cache_tokens / plain.kv_cache_tokens - 64 / 20) < 0.1


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_answer_in_any_company(family: str, checkpoint: Checkpoints) -> None:
    path = checkpoint(family)
    settings = {"dtype": "bfloat16", "speculation": "ngram"}
    alone: dict[tuple[str, int], Stream] = {}
    for target in targets():
        alone |= run(engine(path, dtype="bfloat16", speculation="off"), [target])
    core = engine(path, **settings)
    check(run(core, mixed(targets())), alone)
    again = run(core, targets())
    check(again, alone)
    assert any(stream.cached_tokens > 0 for stream in again.values())
    pieces = engine(path, **settings, max_num_batched_tokens=17, max_num_seqs=4, num_threads=3)
    check(run(pieces, mixed(targets())), alone)


@needs_kernels
def test_the_same_answer_after_preemption(checkpoint: Checkpoints) -> None:
    path = checkpoint("llama")
    alone = {key: s for target in targets() for key, s in run(engine(path), [target]).items()}
    block_bytes = 16 * engine(path).runner.model.cache_spec.bytes_per_token(torch.int8)
    core, streams, preempted = engine(path, kv_cache_memory=11 * block_bytes), dict[tuple[str, int], Stream](), set()
    for target in targets():
        assert core.add(target) is None
    while core.has_work:
        collect(core, streams)
        preempted |= {s.request_id for s in core.scheduler.waiting if s.num_output_tokens}
    assert preempted
    check(streams, alone)
