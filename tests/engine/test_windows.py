"""Models whose every layer has a sliding window: the cache holds the window, and the answers stay transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from langport.engine.blocks import window_blocks
from langport.engine.engine import GenerationEngine
from langport.engine.memory import BLOCK_SIZE
from langport.ops import native
from langport.types import GenerateRequest, SamplingParams
from tests.engine.inprocess import Reference, Stream, collect, load, run
from tests.engine.test_invariance import tokens

Checkpoints = Callable[[str], Path]
WINDOW = 24
STEP_TOKENS = 32
HELD = window_blocks(WINDOW, STEP_TOKENS, BLOCK_SIZE)
"""Blocks of one sequence of the tiny Mistral, at most."""
TOLERANCE = 1e-3


@pytest.fixture(params=["native", "torch"])
def engine(
    request: pytest.FixtureRequest, checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., GenerationEngine]:
    """A tiny Mistral with room for so many blocks, on either path of attention."""
    if request.param == "torch":
        monkeypatch.setenv(native.VARIABLE, "torch")
        monkeypatch.setattr(native, "kernels", native.kernels.__wrapped__)
    elif native.kernels() is None:
        pytest.skip("the native kernels are not built, or switched off")

    def make(num_blocks: int) -> GenerationEngine:
        settings = {"dtype": "float32", "max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8}
        block_bytes = BLOCK_SIZE * 2 * 3 * 2 * 16 * 4
        core = load(checkpoint("mistral"), kv_cache_memory=num_blocks * block_bytes, **settings)
        assert isinstance(core, GenerationEngine)
        assert core.scheduler.pool.num_usable == num_blocks
        assert (core.runner.model.kernels is None) == (request.param == "torch")
        return core

    return make


def scored(name: str, prompt: list[int], **more: int) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, logprobs=0, **more)
    return GenerateRequest(name, prompt, sampling)


def check(stream: Stream, prompt: list[int], reference: Reference) -> None:
    expected, logprobs = reference.greedy(prompt, 20)  # to the end of the text, which the stream passes
    assert stream.tokens[: len(expected)] == expected
    found = [entry.logprob for entry in stream.logprobs[: len(expected)]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(logprobs), atol=TOLERANCE, rtol=0)


def test_a_cache_of_one_window_serves_the_whole_context(
    engine: Callable[..., GenerationEngine], checkpoint: Checkpoints
) -> None:
    core = engine(HELD)
    assert core.info.max_model_len > HELD * BLOCK_SIZE
    assert core.info.kv_cache_sequences == 1
    reference = Reference("mistral", checkpoint("mistral"))
    requests = [scored(f"r{length}", tokens(f"r{length}", length)) for length in (300, 23, 24, 25, 170)]
    streams = run(core, requests)
    for request in requests:
        check(streams[request.request_id, 0], request.prompt_token_ids, reference)


def test_prompt_logprobs_past_the_window(engine: Callable[..., GenerationEngine], checkpoint: Checkpoints) -> None:
    prompt = tokens("p", 150)
    stream = run(engine(HELD), [scored("p", prompt, prompt_logprobs=0)])["p", 0]
    found = [entry.logprob for entry in stream.prompt_logprobs if entry is not None]
    expected = Reference("mistral", checkpoint("mistral")).prompt_logprobs(prompt)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=TOLERANCE, rtol=0)


def test_the_last_window_of_a_known_beginning_is_enough(
    engine: Callable[..., GenerationEngine], checkpoint: Checkpoints
) -> None:
    core = engine(HELD + 2)
    reference = Reference("mistral", checkpoint("mistral"))
    first = tokens("first", 200)
    fresh = run(core, [scored("fresh", first)])["fresh", 0]
    check(fresh, first, reference)
    longer = first + fresh.tokens + tokens("more", 30)
    stream = run(core, [scored("longer", longer)])["longer", 0]
    assert stream.cached_tokens == 208  # 13 blocks, of which no more than the last seven are still there
    check(stream, longer, reference)


def test_the_choices_of_one_request_share_the_window(engine: Callable[..., GenerationEngine]) -> None:
    core = engine(4 * HELD)
    prompt = tokens("n", 160)
    core.add(GenerateRequest("n", prompt, SamplingParams(max_tokens=3, seed=1, ignore_eos=True), n=4))
    streams: dict[tuple[str, int], Stream] = {}
    while core.has_work:
        collect(core, streams)
    assert [streams["n", index].cached_tokens for index in range(4)] == [0, 144, 144, 144]
    alone = run(engine(HELD), [GenerateRequest("n", prompt, SamplingParams(max_tokens=3, seed=1, ignore_eos=True))])
    assert streams["n", 0].tokens == alone["n", 0].tokens
