"""Beam search over the engine finds what transformers' `generate(num_beams=...)` finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from langport.api.beam import BeamParams, beam_search
from langport.engine.engine import GenerationEngine
from langport.engine.messages import Step
from langport.types import Delta, Engine, GenerateRequest, SamplingParams
from tests.checkpoints import DECODERS, ENCODER_DECODERS, save_checkpoint
from tests.engine.inprocess import Reference, load, run

Checkpoints = Callable[[str], Path]
PROMPTS = ([5, 6, 7], [(11 * i) % 250 + 3 for i in range(40)])


class SteppedEngine:
    """An engine in this process that works while somebody waits for it."""

    def __init__(self, core: GenerationEngine) -> None:
        self.core = core

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        assert self.core.add(request) is None
        try:
            while any(key[0] == request.request_id for key in self.core.sequences):
                for message in self.core.step():
                    for delta in message.deltas if isinstance(message, Step) else ():
                        if delta.request_id == request.request_id:
                            yield delta
                self.core.scheduler.check_integrity()
                await asyncio.sleep(0)
        finally:
            self.core.abort(request.request_id, None)


def stepped(path: Path, **settings: object) -> SteppedEngine:
    core = load(path, **settings)
    assert isinstance(core, GenerationEngine)
    return SteppedEngine(core)


async def search(engine: SteppedEngine, prompt: list[int], n: int, params: BeamParams, **sampling: Any) -> list[Delta]:
    asked = SamplingParams(**{"max_tokens": 12, **sampling})
    ends = {*asked.stop_token_ids, *(() if asked.ignore_eos else engine.core.info.eos_token_ids)}
    deltas = beam_search(
        cast(Engine, engine),
        GenerateRequest("r", prompt, asked, n),
        params,
        end_token_ids=ends,
        is_stopped=lambda tokens: False,
    )
    return [delta async for delta in deltas]


@torch.inference_mode()
def reference(
    family: str, path: Path, prompt: list[int], n: int, params: BeamParams, **options: Any
) -> list[list[int]]:
    transformers = Reference(family, path)
    found = transformers.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=params.width,
        num_return_sequences=n,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        do_sample=False,
        use_cache=False,
        **{"max_new_tokens": 12, **options},
    )
    sequences = found[:, len(prompt) if transformers.is_decoder else 1 :].tolist()
    ends = options.get("eos_token_id", [transformers.model.config.eos_token_id])
    return [cut(tokens, ends) for tokens in sequences]


def cut(tokens: list[int], ends: list[int]) -> list[int]:
    """Up to the first end token; what comes after it is padding."""
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


@pytest.fixture(scope="session")
def ends(checkpoint: Checkpoints) -> Callable[[str], tuple[int, ...]]:
    """Some tokens that a family's model likes to say, to be the ends of its answers."""

    def find(family: str) -> tuple[int, ...]:
        sampling = SamplingParams(max_tokens=4, temperature=0, logprobs=6, ignore_eos=True)
        [stream] = run(load(checkpoint(family)), [GenerateRequest("r", PROMPTS[0], sampling)]).values()
        return tuple({entry.top[rank][0] for entry in stream.logprobs for rank in (2, 4)})

    return find


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
async def test_every_family_finds_the_same_beams(family: str, checkpoint: Checkpoints, ends: Any) -> None:
    path = checkpoint(family)
    stops = ends(family)
    engine = stepped(path)
    eos = [*stops, *engine.core.info.eos_token_ids]
    for prompt in PROMPTS:
        for params, n in ((BeamParams(4), 4), (BeamParams(3, 0.0, True), 2)):
            found = await search(engine, prompt, n, params, stop_token_ids=stops)
            assert [d.token_ids for d in found] == reference(family, path, prompt, n, params, eos_token_id=eos)
            assert [d.finish_reason for d in found] == ["stop" if d.token_ids[-1] in eos else "length" for d in found]
    assert engine.core.scheduler.pool.num_free == engine.core.scheduler.pool.num_usable


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
async def test_length_penalty_and_early_stopping(
    length_penalty: float, early_stopping: Any, checkpoint: Checkpoints, ends: Any
) -> None:
    path = checkpoint("llama")
    params = BeamParams(4, length_penalty, early_stopping)
    reasons = set()
    for stops in (ends("llama"), ends("llama")[:1]):
        found = await search(stepped(path), PROMPTS[0], 3, params, stop_token_ids=stops, ignore_eos=True, max_tokens=20)
        wanted = reference("llama", path, PROMPTS[0], 3, params, eos_token_id=[*stops], max_new_tokens=20)
        assert [d.token_ids for d in found] == wanted
        reasons |= {d.finish_reason for d in found}
    assert "stop" in reasons or length_penalty > 0


async def test_penalties_and_bans_are_those_of_transformers(checkpoint: Checkpoints) -> None:
    path = checkpoint("llama")
    params = BeamParams(3)
    found = await search(stepped(path), PROMPTS[1], 3, params, repetition_penalty=1.3, min_tokens=6)
    wanted = reference("llama", path, PROMPTS[1], 3, params, repetition_penalty=1.3, min_new_tokens=6)
    assert [d.token_ids for d in found] == wanted
    bias = dict.fromkeys({tokens[0] for tokens in wanted}, -100.0)
    biased = await search(stepped(path), PROMPTS[1], 3, params, logit_bias=bias)
    assert not bias.keys() & {d.token_ids[0] for d in biased}


async def test_rules_of_the_checkpoint_hold_at_their_place_in_the_answer(tmp_path: Path) -> None:
    path = save_checkpoint("bart", tmp_path / "bart")
    config = json.loads((path / "generation_config.json").read_text())
    rules = {"forced_bos_token_id": 9, "forced_eos_token_id": 2, "no_repeat_ngram_size": 2}
    (path / "generation_config.json").write_text(json.dumps({**config, **rules}))
    for prompt in PROMPTS:
        found = await search(stepped(path), prompt, 4, BeamParams(4))
        assert [d.token_ids for d in found] == reference("bart", path, prompt, 4, BeamParams(4))
        assert {d.token_ids[0] for d in found} == {9}
        assert {d.token_ids[-1] for d in found} == {2}


async def test_prompt_blocks_are_computed_once_and_scores_come_along(checkpoint: Checkpoints) -> None:
    prompt = [(13 * i) % 250 + 3 for i in range(70)]
    engine = stepped(checkpoint("llama"))
    [sampled] = run(
        engine.core, [GenerateRequest("s", prompt, SamplingParams(max_tokens=0, prompt_logprobs=1))]
    ).values()
    num_computed = 0
    run_step = engine.core.runner.run

    def counted(step: Any) -> Any:
        nonlocal num_computed
        num_computed += sum(scheduled.num_tokens for scheduled in step)
        return run_step(step)

    engine.core.runner.run = counted  # type: ignore[method-assign]
    params = BeamParams(2)
    found = await search(engine, prompt, 2, params, max_tokens=8, logprobs=1, prompt_logprobs=1, ignore_eos=True)
    # The prompt once, then seven rounds of two beams: all but the rest of a block or two is known.
    assert num_computed <= 70 + 7 * 2 * 22
    assert found[0].prompt_logprobs == sampled.prompt_logprobs
    assert found[1].prompt_logprobs is None
    logits = Reference("llama", checkpoint("llama")).model(torch.tensor([[*prompt, *found[1].token_ids]])).logits[0]
    for place, (token, entry) in enumerate(zip(found[1].token_ids, found[1].logprobs or [], strict=True)):
        expected = logits[69 + place].log_softmax(-1)
        assert entry.token_id == token
        assert len(entry.top) == 1
        assert entry.logprob == pytest.approx(expected[token].item(), abs=1e-4)
        assert entry.top[0][1] == pytest.approx(expected.max().item(), abs=1e-4)


async def test_leaving_early_frees_everything(checkpoint: Checkpoints) -> None:
    for family in ("llama", "t5"):
        engine = stepped(checkpoint(family), max_num_seqs=2)  # a round of three beams takes several steps
        call = asyncio.create_task(search(engine, PROMPTS[1], 3, BeamParams(3), max_tokens=200, ignore_eos=True))
        while not any(sequence.num_output_tokens > 3 for sequence in engine.core.sequences.values()):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert engine.core.sequences == {}
        assert engine.core.scheduler.pool.num_free == engine.core.scheduler.pool.num_usable


async def test_beams_are_preempted_and_run_beside_others(checkpoint: Checkpoints) -> None:
    path = checkpoint("llama")
    roomy = await search(stepped(path), PROMPTS[1], 4, BeamParams(4), ignore_eos=True)
    tight = stepped(path, max_model_len=64, kv_cache_memory=6 * 16 * 2 * 3 * 2 * 16 * 4)
    tight.core.add(GenerateRequest("other", [9] * 20, SamplingParams(max_tokens=30, temperature=0, ignore_eos=True)))
    crowded = await search(tight, PROMPTS[1], 4, BeamParams(4), ignore_eos=True)
    assert [d.token_ids for d in crowded] == [d.token_ids for d in roomy]
