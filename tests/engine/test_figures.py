"""What engines report of themselves: totals, and where the time to a first token went."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from langport.engine.engine import EngineCore
from langport.engine.messages import FirstToken, Step, decode_from_engine, encode
from langport.figures import Phases, phases_watcher
from langport.types import EmbedRequest, EngineTotals, GenerateRequest, SamplingParams
from tests.engine.inprocess import load
from tests.engine.test_client import running
from tests.engine.test_engine import KV_BYTES_PER_BLOCK

Checkpoints = Callable[[str], Path]
BLOCK_SIZE = 16


def request(name: str, prompt: list[int], max_tokens: int, n: int = 1, **sampling: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True, **sampling)  # type: ignore[arg-type]
    return GenerateRequest(name, prompt, params, n)


def run(core: EngineCore, *requests: GenerateRequest) -> tuple[EngineTotals, list[FirstToken]]:
    """The last totals, and all first tokens."""
    for each in requests:
        assert core.add(each) is None
    firsts: list[FirstToken] = []
    totals = EngineTotals()
    while core.has_work:
        for message in core.step():
            if isinstance(message, Step):
                assert decode_from_engine(encode(message)[4:]) == message
                totals = message.totals
                firsts += message.first_tokens
    return totals, firsts


def test_tokens_steps_and_the_prefix_cache(checkpoint: Checkpoints) -> None:
    core = load(checkpoint("llama"))
    prompt = list(range(10, 50))
    totals, firsts = run(core, request("first", prompt, 5))
    assert totals == EngineTotals(5, 40 + 4, 5, 40, 0, 0)
    assert [first.request_id for first in firsts] == ["first"]
    again, firsts = run(core, request("again", prompt, 1))
    assert again == EngineTotals(6, 44 + 40 - 2 * BLOCK_SIZE, 6, 80, 2 * BLOCK_SIZE, 0)
    assert firsts[0].queue_s >= 0
    assert firsts[0].prefill_s > 0


def test_what_cannot_be_shared_is_not_looked_for(checkpoint: Checkpoints) -> None:
    totals, _ = run(load(checkpoint("llama")), request("scored", list(range(40)), 1, prompt_logprobs=0))
    assert totals.num_queried_tokens == 0
    totals, firsts = run(load(checkpoint("t5")), request("encoded", [5, 6, 7], 2))
    assert (totals.num_queried_tokens, totals.num_generated_tokens, len(firsts)) == (0, 2, 1)


def test_of_several_choices_the_first_one_is_timed_and_all_tokens_count(checkpoint: Checkpoints) -> None:
    totals, firsts = run(load(checkpoint("llama")), request("many", [5, 6, 7], 4, n=3))
    assert totals.num_generated_tokens == 12
    assert len(firsts) == 1


def test_preemptions_count_and_recomputed_tokens_too(checkpoint: Checkpoints) -> None:
    core = load(checkpoint("llama"), max_model_len=64, kv_cache_memory=6 * KV_BYTES_PER_BLOCK)
    totals, firsts = run(core, *(request(f"r{number}", [number + 5] * 20, 40) for number in range(5)))
    assert totals.num_preemptions > 0
    assert totals.num_generated_tokens == 5 * 40
    assert totals.num_computed_tokens > 5 * (20 + 39)
    assert totals.num_queried_tokens == 5 * 20  # at first admissions alone
    assert len(firsts) == 5


def test_an_embedders_totals(checkpoint: Checkpoints) -> None:
    core = load(checkpoint("bert"))
    assert core.add(EmbedRequest("e", [[5, 6, 7], [8]])) is None
    messages = core.step()
    assert messages[-1] == Step([], 0, 0, 0.0, EngineTotals(1, 4))


async def test_a_client_counts_times_and_tells_phases_to_who_asks(checkpoint: Checkpoints) -> None:
    async with running(checkpoint("llama")) as client:
        await client.wait_ready()
        seen: list[Phases] = []

        async def traced() -> None:
            phases_watcher.set(seen.append)
            [delta async for delta in client.generate(request("traced", [5, 6, 7], 4))]

        await asyncio.create_task(traced())
        [delta async for delta in client.generate(request("untraced", [5, 6, 7], 4))]
        (phases,) = seen
        assert phases.asked_s > 1e9
        assert min(phases.queue_s, phases.decode_s) >= 0
        assert phases.prefill_s > 0
        for histogram in (client.queue_time, client.prefill_time, client.first_token_time):
            assert sum(histogram.counts) == 2
        assert client.first_token_time.sum == client.queue_time.sum + client.prefill_time.sum
        assert client.health().totals.num_generated_tokens == 8
