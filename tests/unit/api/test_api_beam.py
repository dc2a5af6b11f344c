"""Beam search over the API: what is asked of the engine, what is answered, what is refused."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import pytest

from langport.api.beam import BeamParams, beam_search
from langport.errors import ApiError, EngineFailed
from langport.testing import FakeEngine
from langport.types import GenerateRequest, ModelInfo, SamplingParams

SIZE = 6
"""Tokens of a model small enough that all its answers can be counted up."""


async def answers(engine: FakeEngine, n: int, params: BeamParams, **sampling: Any) -> list[tuple[list[int], float]]:
    """Tokens and log-probability of the answers found."""
    request = GenerateRequest("r", [1], SamplingParams(**{"max_tokens": 4, "logprobs": 0, **sampling}), n)
    ends = set(sampling.get("stop_token_ids", ()))
    deltas = beam_search(engine, request, params, end_token_ids=ends, is_stopped=lambda tokens: False)
    found = [delta async for delta in deltas]
    return [(d.token_ids, sum(entry.logprob for entry in d.logprobs or [])) for d in found]


async def test_enough_beams_find_the_likeliest_of_all_answers():
    engine = FakeEngine(ModelInfo("decoder", "Fake", 600, SIZE))
    # The probability of every answer, one forced token after the other.
    scores: dict[tuple[int, ...], float] = {}
    for answer in itertools.product(range(SIZE), repeat=3):
        total = 0.0
        for place, token in enumerate(answer):
            sampling = SamplingParams(max_tokens=9, temperature=0, logprobs=SIZE, is_beam=True)
            request = GenerateRequest("x", [1], sampling, outputs=[list(answer[:place])])
            [delta] = [delta async for delta in engine.generate(request)]
            total += dict(delta.logprobs[0].top)[token]
        scores[answer] = total
    best = sorted(scores, key=lambda answer: scores[answer], reverse=True)[:5]
    found = await answers(engine, 5, BeamParams(SIZE**2), max_tokens=3)
    assert [tuple(tokens) for tokens, _ in found] == best
    for tokens, total in found:
        assert math.isclose(total, scores[tuple(tokens)], abs_tol=1e-9)


async def test_one_beam_is_greedy(serve):
    fake = serve()
    greedy = (await fake.complete(temperature=0, max_tokens=20, logprobs=2)).json
    beam = (await fake.complete(use_beam_search=True, max_tokens=20, logprobs=2)).json
    assert beam["choices"] == greedy["choices"]
    assert beam["usage"] == greedy["usage"]


async def test_choices_come_best_first_and_are_counted(serve):
    fake = serve()
    fields: dict[str, Any] = {"max_tokens": 6, "logprobs": 0, "use_beam_search": True, "prompt": ["abc", "xyz"]}
    reply = (await fake.complete(n=2, best_of=4, **fields)).json
    scores = [sum(choice["logprobs"]["token_logprobs"]) for choice in reply["choices"]]
    assert scores[0] > scores[1]
    assert scores[2] > scores[3]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"]["completion_tokens"] == 24
    assert {request.n for request in fake.engine.requests} == {1, 4}
    wide = (await fake.complete(n=1, best_of=12, **fields)).json
    assert sum(wide["choices"][0]["logprobs"]["token_logprobs"]) >= scores[0]


async def test_chat_searches_too_and_asks_without_sampling(serve):
    fake = serve()
    reply = (await fake.chat(use_beam_search=True, n=2, best_of=3, max_tokens=3, temperature=0, seed=1)).json
    assert len(reply["choices"]) == 2
    assert reply["choices"][0]["message"]["content"] != reply["choices"][1]["message"]["content"]
    assert reply["choices"][0]["logprobs"] is None
    rounds = fake.engine.requests
    assert [(request.n, request.sampling.temperature, request.sampling.logprobs) for request in rounds] == [
        (1, 0.0, 6),
        (3, 0.0, 6),
        (3, 0.0, 6),
    ]
    assert [[len(tokens) for tokens in request.outputs] for request in rounds] == [[], [1] * 3, [2] * 3]


async def test_chat_returns_the_best_of_its_draws(serve):
    fake = serve()
    fields: dict[str, Any] = {"max_tokens": 4, "seed": 3, "temperature": 1}
    every = (await fake.chat(n=6, logprobs=True, **fields)).json["choices"]
    best = (await fake.chat(n=2, best_of=6, **fields)).json

    def total(choice: dict[str, Any]) -> float:
        return sum(token["logprob"] for token in choice["logprobs"]["content"])

    ranked = sorted(every, key=total, reverse=True)[:2]
    assert [c["message"]["content"] for c in best["choices"]] == [c["message"]["content"] for c in ranked]
    assert [choice["logprobs"] for choice in best["choices"]] == [None, None]
    assert best["usage"]["completion_tokens"] == 24


async def test_a_stop_string_ends_a_beam(serve):
    fake = serve()
    fields: dict[str, Any] = {"use_beam_search": True, "best_of": 3, "max_tokens": 8}
    text = (await fake.complete(**fields)).json["choices"][0]["text"]
    reply = (await fake.complete(stop=text[2:4], n=3, **fields)).json
    stopped = [choice for choice in reply["choices"] if choice["finish_reason"] == "stop"]
    assert stopped
    assert all(text[2:4] not in choice["text"] for choice in reply["choices"])
    assert all(len(choice["text"]) < 8 for choice in stopped)


async def test_echo_and_the_prompt_s_scores_come_along(serve):
    fake = serve()
    fields: dict[str, Any] = {"prompt": "abc", "echo": True, "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 2}
    searched = (await fake.complete(use_beam_search=True, n=2, best_of=2, **fields)).json["choices"]
    drawn = (await fake.complete(temperature=0, **fields)).json["choices"][0]
    for choice in searched:
        assert choice["text"].startswith("abc")
        assert choice["prompt_logprobs"] == drawn["prompt_logprobs"]
        assert choice["logprobs"]["top_logprobs"][:3] == drawn["logprobs"]["top_logprobs"][:3]
    assert [request.sampling.prompt_logprobs for request in fake.engine.requests] == [1, None, 1]


async def test_answers_that_cannot_be_are_empty(serve):
    engine = FakeEngine(ModelInfo("decoder", "Fake", 600, 1))
    assert [tokens for tokens, _ in await answers(engine, 3, BeamParams(3))] == [[0] * 4, [], []]


async def test_an_encoder_decoder_searches(serve):
    fake = serve(kind="encoder-decoder")
    reply = (await fake.complete(use_beam_search=True, best_of=3, max_tokens=5)).json
    assert reply["usage"]["completion_tokens"] == 5
    assert {tuple(request.prompt_token_ids) for request in fake.engine.requests} == {(97, 98, 99)}


async def test_leaving_ends_the_round_that_runs(serve):
    fake = serve()
    call = asyncio.create_task(fake.complete(use_beam_search=True, best_of=4, max_tokens=500, ignore_eos=True))
    while len(fake.engine.requests) < 3:
        await asyncio.sleep(0)
    fake.client.left.set()
    await call
    assert not fake.client.received.is_finished
    assert fake.engine.num_open == 0
    num_rounds = len(fake.engine.requests)
    await asyncio.sleep(0.01)
    assert len(fake.engine.requests) == num_rounds


async def test_an_engine_that_ends_a_round_too_early_is_an_error(serve):
    fake = serve()
    call = asyncio.create_task(fake.complete(use_beam_search=True, best_of=2))
    fake.engine.running.clear()
    while not fake.engine.requests:
        await asyncio.sleep(0)
    fake.engine.abort(fake.engine.requests[0].request_id, 0)
    fake.engine.running.set()
    with pytest.raises(EngineFailed):
        await call


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"use_beam_search": True, "temperature": 0.7}, "temperature"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of"),
        ({"use_beam_search": "yes"}, "use_beam_search"),
        ({"use_beam_search": True, "early_stopping": "often"}, "early_stopping"),
        ({"use_beam_search": True, "length_penalty": "long"}, "length_penalty"),
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"best_of": 2, "stream": True}, "best_of"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields: dict[str, Any], param: str):
    fake = serve()
    for ask in (fake.complete, fake.chat):
        with pytest.raises(ApiError) as error:
            await ask(**fields)
        assert (error.value.status, error.value.param) == (400, param)
    assert fake.engine.requests == []


async def test_what_older_clients_always_send_is_taken(serve, says):
    fake = serve(says("x"))
    fields = {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False, "best_of": None}
    reply = (await fake.complete(stream=True, **fields)).events
    assert reply[-1] == "[DONE]"
