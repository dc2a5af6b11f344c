"""The step loop: arrivals, aborts, small pools, ends of sequences, sampling rules."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from transformers.generation.logits_process import TypicalLogitsWarper

from langport.engine.blocks import BlockPool
from langport.engine.budget import StepBudget
from langport.engine.engine import EmbeddingEngine, GenerationEngine
from langport.engine.scheduler import AGING_S, Scheduler
from langport.engine.sequence import Sequence
from langport.errors import CheckpointError
from langport.ops import native
from langport.types import EmbedRequest, GenerateRequest, SamplingParams
from tests.engine.inprocess import Stream, collect, load, run

Checkpoints = Callable[[str], Path]
KV_BYTES_PER_BLOCK = 16 * 2 * 3 * 2 * 16 * 4
"""Of the tiny llama: tokens, keys and values, layers, kv heads, head size, float32."""


def generation_engine(path: Path, **settings: object) -> GenerationEngine:
    core = load(path, **settings)
    assert isinstance(core, GenerationEngine)
    return core


def greedy(request_id: str, prompt: list[int], **sampling: object) -> GenerateRequest:
    return GenerateRequest(request_id, prompt, SamplingParams(**{"max_tokens": 10, "temperature": 0.0, **sampling}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "kv_cache_memory"), [("llama", 100_000), ("t5", 320_000)])
@pytest.mark.parametrize("seed", range(3))
def test_random_arrivals_and_aborts_leave_no_block_behind(
    family: str, kv_cache_memory: int, seed: int, checkpoint: Checkpoints
) -> None:
    rng = random.Random(seed)
    # A pool of hardly more than one full context: sequences are preempted again and again.
    core = generation_engine(
        checkpoint(family), max_model_len=96, max_num_seqs=6, max_num_batched_tokens=40, kv_cache_memory=kv_cache_memory
    )
    alone = {}
    requests = []
    for number in range(14):
        prompt = [rng.randrange(3, 250) for _ in range(rng.randrange(1, 60))]
        requests.append(greedy(f"r{number}", prompt, max_tokens=rng.randrange(0, 30), ignore_eos=True))
        alone[requests[-1].request_id] = run(core, [requests[-1]])[requests[-1].request_id, 0]
    aborted = set(rng.sample([request.request_id for request in requests], 3))
    streams: dict[tuple[str, int], Stream] = {}
    arriving = list(requests)
    while arriving or core.has_work:
        while arriving and rng.random() < 0.4:
            assert core.add(arriving.pop()) is None
        if core.has_work:
            collect(core, streams)
        if rng.random() < 0.1:
            core.abort(rng.choice(sorted(aborted)), None)
    core.scheduler.check_integrity()
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_usable
    assert core.sequences == {}
    for request in requests:
        if request.request_id not in aborted:
            stream = streams[request.request_id, 0]
            assert stream.tokens == alone[request.request_id].tokens
            assert stream.finish_reason == "length"


def test_a_small_pool_preempts_and_still_gives_the_same_tokens(checkpoint: Checkpoints) -> None:
    requests = [greedy(f"r{i}", [10 + i] * 20, max_tokens=40, ignore_eos=True) for i in range(5)]
    roomy = run(generation_engine(checkpoint("llama"), max_model_len=64), requests)
    core = generation_engine(checkpoint("llama"), max_model_len=64, kv_cache_memory=6 * KV_BYTES_PER_BLOCK)
    assert core.scheduler.pool.num_usable == 6  # one and a half full contexts
    assert run(core, requests) == roomy


def test_new_requests_join_at_the_next_step_and_a_long_prompt_stops_nobody(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_num_batched_tokens=32, max_num_seqs=4)
    streams: dict[tuple[str, int], Stream] = {}
    core.add(greedy("short", [5, 6], max_tokens=30, ignore_eos=True))
    collect(core, streams)
    core.add(greedy("long", [7] * 300, max_tokens=2, ignore_eos=True))
    for step in range(2, 12):  # the long prompt takes ten steps of 32 tokens
        collect(core, streams)
        assert len(streams["short", 0].tokens) == step
    while core.has_work:
        collect(core, streams)
    assert len(streams["long", 0].tokens) == 2


def test_an_aborted_sequence_leaves_at_once_and_the_others_go_on(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    core.add(GenerateRequest("r", [5, 6, 7], SamplingParams(max_tokens=50, ignore_eos=True), n=3))
    streams: dict[tuple[str, int], Stream] = {}
    collect(core, streams)
    core.abort("r", 1)
    core.abort("unknown", None)
    assert len(core.scheduler.running) == 2
    while core.has_work:
        collect(core, streams)
    assert [len(streams["r", i].tokens) for i in range(3)] == [50, 1, 50]


def test_seeded_draws_repeat_and_do_not_depend_on_the_neighbours(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    sampling = SamplingParams(max_tokens=25, temperature=1.0, seed=7, ignore_eos=True)
    drawn = GenerateRequest("drawn", [5, 6, 7], sampling, n=2)
    alone = run(core, [drawn])
    crowd = [GenerateRequest(f"c{i}", [9 + i] * (3 * i + 1), SamplingParams(max_tokens=20 + i)) for i in range(7)]
    together = run(core, [*crowd, drawn])
    for index in range(2):
        assert together["drawn", index].tokens == alone["drawn", index].tokens
    assert alone["drawn", 0].tokens != alone["drawn", 1].tokens
    unseeded = [run(core, [greedy(str(i), [5], temperature=1.0, max_tokens=25)])[str(i), 0].tokens for i in range(2)]
    assert unseeded[0] != unseeded[1]


def test_draws_follow_the_distribution(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_num_seqs=128)
    sampling = SamplingParams(max_tokens=1, temperature=0.7, seed=3, logprobs=0)
    bias = {token: 40.0 - token for token in range(10, 14)}  # four tokens share all the probability
    requests = [
        GenerateRequest(f"r{i}", [5], SamplingParams(**{**as_dict(sampling), "seed": i, "logit_bias": bias}), n=128)
        for i in range(16)
    ]
    counts = Counter(stream.tokens[0] for stream in run(core, requests).values())
    assert set(counts) <= set(range(10, 14))
    # The odds of two tokens follow from the model's own logits, the bias and the temperature.
    [scored] = run(core, [greedy("s", [5], max_tokens=1, logprobs=384)]).values()
    raw = dict(scored.logprobs[0].top)
    weights = {token: math.exp((raw[token] + bias[token]) / 0.7) for token in bias}
    total = sum(weights.values())
    for token, weight in weights.items():
        expected = weight / total
        assert abs(counts[token] / 2048 - expected) < 5 * math.sqrt(expected * (1 - expected) / 2048) + 1e-3


def as_dict(sampling: SamplingParams) -> dict[str, object]:
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def test_top_p_top_k_and_min_p_leave_only_likely_tokens(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_num_seqs=64)
    [scored] = run(core, [greedy("s", [5], max_tokens=1, logprobs=384)]).values()
    ranked = [token for token, _ in scored.logprobs[0].top]

    def drawn(**sampling: object) -> set[int]:
        params = SamplingParams(**{"max_tokens": 1, "seed": 1, **sampling})  # type: ignore[arg-type]
        return {stream.tokens[0] for stream in run(core, [GenerateRequest("d", [5], params, n=256)]).values()}

    assert drawn(top_k=3) == set(ranked[:3])
    assert drawn(top_p=1e-6) == {ranked[0]}
    assert drawn(top_p=0.0) == {ranked[0]}
    assert drawn(min_p=1.0) == {ranked[0]}
    assert len(drawn()) > 10
    mass, nucleus = 0.0, set()
    for token, logprob in scored.logprobs[0].top:
        if mass < 0.5:
            nucleus.add(token)
        mass += math.exp(logprob)
    assert drawn(top_p=0.5) <= nucleus


def test_penalties_bias_and_min_tokens(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    forced = greedy("f", [5], logit_bias={77: 100.0, 78: 99.0}, max_tokens=6)
    assert run(core, [forced])["f", 0].tokens == [77] * 6
    penalized = greedy("p", [5], logit_bias={77: 100.0, 78: 99.5}, frequency_penalty=2.0, max_tokens=6)
    assert set(run(core, [penalized])["p", 0].tokens) == {77, 78}
    first = run(core, [greedy("a", [5])])["a", 0].tokens[0]
    assert run(core, [greedy("b", [5], logit_bias={first: -100.0})])["b", 0].tokens[0] != first
    eos = greedy("e", [5], logit_bias={2: 100.0})
    assert run(core, [eos])["e", 0].tokens == [2]
    assert run(core, [eos])["e", 0].finish_reason == "stop"
    late = run(core, [greedy("l", [5], logit_bias={2: 100.0}, min_tokens=4)])["l", 0].tokens
    assert len(late) == 5
    assert late.index(2) == 4
    ignoring = run(core, [greedy("i", [5], logit_bias={2: 100.0}, ignore_eos=True)])["i", 0]
    assert ignoring.tokens == [2] * 10
    assert ignoring.finish_reason == "length"
    stopped = run(core, [greedy("s", [5], logit_bias={90: 100.0}, stop_token_ids=(90,))])["s", 0]
    assert (stopped.tokens, stopped.finish_reason) == ([90], "stop")


def test_bad_words_and_allowed_tokens(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    bias = {70: 100.0, 71: 60.0, 72: 20.0}
    plain = run(core, [greedy("p", [5], logit_bias=bias)])["p", 0].tokens
    assert plain == [70] * 10
    no_pair = run(core, [greedy("b", [5], logit_bias=bias, bad_words=((70, 70), (72,)))])["b", 0].tokens
    assert no_pair == [70, 71] * 5
    allowed = run(core, [greedy("a", [5], allowed_token_ids=(71, 72), logit_bias=bias)])["a", 0].tokens
    assert allowed == [71] * 10


def test_typical_p_keeps_what_transformers_keeps(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_num_seqs=64)
    [scored] = run(core, [greedy("s", [5], max_tokens=1, logprobs=384)]).values()
    logits = torch.full((1, 384), float("-inf"))
    for token, logprob in scored.logprobs[0].top:
        logits[0, token] = logprob
    for mass in (0.05, 0.3, 0.8):
        kept = TypicalLogitsWarper(mass)(torch.tensor([[5]]), logits.clone())[0].isfinite()
        params = SamplingParams(max_tokens=1, seed=1, typical_p=mass)
        drawn = {stream.tokens[0] for stream in run(core, [GenerateRequest("d", [5], params, n=256)]).values()}
        assert drawn <= set(kept.nonzero().flatten().tolist())
        assert len(drawn) > 1 or kept.sum() == 1


def test_log_probabilities_describe_the_raw_or_the_processed_distribution(checkpoint: Checkpoints) -> None:
    bias = {70: 5.0, 71: 4.0}
    request = greedy("r", [5], logit_bias=bias, temperature=0.5, seed=1, max_tokens=1, logprobs=384)
    raw, processed = (
        dict(run(generation_engine(checkpoint("llama"), logprobs_mode=mode), [request])["r", 0].logprobs[0].top)
        for mode in ("raw", "processed")
    )
    expected = torch.tensor([(raw[token] + bias.get(token, 0.0)) / 0.5 for token in range(384)]).log_softmax(-1)
    torch.testing.assert_close(torch.tensor([processed[token] for token in range(384)]), expected, atol=1e-4, rtol=0)


def test_priority_goes_first_and_waiting_makes_up_for_it() -> None:
    now = [0.0]
    pool = BlockPool(num_blocks=100, block_size=16)
    scheduler = Scheduler(pool, max_num_seqs=1, budget=StepBudget.fixed(64), clock=lambda: now[0])

    def add(name: str, priority: int) -> None:
        request = GenerateRequest(name, [5], SamplingParams(max_tokens=1), priority=priority)
        scheduler.add(Sequence(request, 0, 0, tokens=[5]))

    for name, priority in (("later", 1), ("normal", 0), ("urgent", -2), ("second", 0)):
        add(name, priority)
    now[0] = AGING_S + 1
    add("fresh", 0)  # came after `later` had waited for longer than its priority costs
    order = []
    while scheduler.has_work:
        [scheduled] = scheduler.schedule()
        order.append(scheduled.sequence.request_id)
        scheduler.finish(scheduled.sequence)
    assert order == ["urgent", "normal", "second", "later", "fresh"]


def test_a_sequence_ends_where_the_context_does(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_model_len=32)
    stream = run(core, [greedy("r", [5] * 30, max_tokens=100, ignore_eos=True)])["r", 0]
    assert (len(stream.tokens), stream.finish_reason) == (2, "length")


def test_one_context_that_does_not_fit_is_refused_with_the_figures(checkpoint: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match=r"one sequence of 512 tokens needs .* use --max-model-len 16 or less"):
        load(checkpoint("llama"), kv_cache_memory=KV_BYTES_PER_BLOCK)


def test_the_wrong_kind_of_request_is_refused(checkpoint: Checkpoints) -> None:
    refused = load(checkpoint("llama")).add(EmbedRequest("e", [[5]]))
    assert refused is not None
    assert "no embeddings" in refused.message
    refused = load(checkpoint("bert")).add(greedy("g", [5]))
    assert refused is not None
    assert "generates no text" in refused.message


def embedding_engine(path: Path) -> EmbeddingEngine:
    core = load(path, max_num_batched_tokens=100)
    assert isinstance(core, EmbeddingEngine)
    core.add(EmbedRequest("a", [[5] * 40, [6] * 45, [7] * 3]))
    core.add(EmbedRequest("b", [[8] * 2, [9] * 44]))
    return core


@pytest.mark.skipif(native.kernels() is None, reason="the native kernels are not built, or switched off")
def test_embeddings_are_batched_within_the_budget(checkpoint: Checkpoints) -> None:
    core = embedding_engine(checkpoint("bert"))
    assert core._take_batch() == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert core._take_batch() == [("b", 1)]
    core.add(EmbedRequest("c", [[5] * 101, [6]]))
    assert core._take_batch() == [("c", 0)]


@pytest.mark.usefixtures("without_kernels")
def test_what_is_padded_is_batched_by_length_and_aborted_ones_are_forgotten(checkpoint: Checkpoints) -> None:
    core = embedding_engine(checkpoint("bert"))
    assert len(core._take_batch()) == 2  # the oldest and its nearest in length; a third would pass the budget
    core.abort("a", None)
    core.abort("a", None)
    assert list(core.waiting) == [("b", 0)]


def test_a_known_beginning_is_not_computed_again(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    prompt = list(range(20, 70))  # three full blocks and two tokens
    fresh = run(core, [greedy("fresh", prompt)])["fresh", 0]
    again = run(core, [greedy("again", prompt)])["again", 0]
    longer = run(core, [greedy("longer", prompt + fresh.tokens + [9])])["longer", 0]
    other = run(core, [greedy("other", [3, *prompt[1:]])])["other", 0]
    assert again.tokens == fresh.tokens
    assert [stream.cached_tokens for stream in (fresh, again, longer, other)] == [0, 48, 48, 0]
    # A whole block more is known by then, but the last token must be computed to be continued.
    exact = run(core, [greedy("exact", prompt[:48])])["exact", 0]
    assert exact.cached_tokens == 32


def test_requests_with_different_salts_share_nothing(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    cached = []
    for salt in ("", "a", "b", "a", ""):
        request = msgspec.structs.replace(greedy("r", list(range(20, 70))), cache_salt=salt)
        cached.append(run(core, [request])["r", 0].cached_tokens)
    assert cached == [0, 0, 0, 48, 48]


def test_the_choices_of_one_request_share_their_prompt(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"))
    core.add(GenerateRequest("r", [5] * 50, SamplingParams(max_tokens=4, ignore_eos=True), n=4))
    streams: dict[tuple[str, int], Stream] = {}
    collect(core, streams)
    assert len(core.scheduler.running) == 1  # the others wait one step for its blocks
    collect(core, streams)
    assert core.scheduler.pool.num_usable - core.scheduler.pool.num_free == 4 + 3
    while core.has_work:
        collect(core, streams)
    assert [streams["r", index].cached_tokens for index in range(4)] == [0, 48, 48, 48]


def test_known_blocks_give_way_when_room_is_needed(checkpoint: Checkpoints) -> None:
    core = generation_engine(checkpoint("llama"), max_model_len=64, kv_cache_memory=6 * KV_BYTES_PER_BLOCK)
    run(core, [greedy("a", [5] * 33, max_tokens=1)])
    run(core, [greedy("b", [6] * 60, max_tokens=1)])
    assert run(core, [greedy("c", [5] * 33, max_tokens=1)])["c", 0].cached_tokens == 32
    run(core, [greedy("d", [7] * 60, max_tokens=1)])
    run(core, [greedy("e", [8] * 60, max_tokens=1)])
    assert run(core, [greedy("f", [5] * 33, max_tokens=1)])["f", 0].cached_tokens == 0
