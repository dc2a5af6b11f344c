"""Completions over the fake engine: prompts, echo, log-probabilities, best_of and limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from langport.errors import ApiError, ContextLengthExceeded, EngineFailed, InvalidRequest
from langport.settings.tree import LimitSettings
from langport.testing import BOS, EOS


def texts(reply: Any) -> list[str]:
    choices = reply.json["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


def fold(reply: Any) -> dict[int, dict[str, Any]]:
    """A streamed answer put together by choice, as `choices` of a plain one."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in reply.events[:-1]:
        for choice in chunk["choices"]:
            into = found.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
            assert into["finish_reason"] is None, "nothing comes after the finish reason"
            into["text"] += choice["text"]
            into["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"]:
                into["logprobs"] = into["logprobs"] or {key: [] for key in choice["logprobs"]}
                for key, values in choice["logprobs"].items():
                    into["logprobs"][key] += values
    return found


async def test_plain_answer(serve, says):
    fake = serve(says("def"))
    answer = (await fake.complete()).json
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"index": 0, "text": "def", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 4
    assert fake.engine.requests[0].sampling.max_tokens == 597


async def test_max_tokens_may_be_the_whole_context_but_no_more(serve, says):
    fake = serve(says("x"))
    assert (await fake.complete(max_tokens=600)).status == 200
    with pytest.raises(InvalidRequest, match="at most 600") as caught:
        await fake.complete(max_tokens=601)
    assert caught.value.param == "max_tokens"


async def test_max_tokens_defaults_to_4096(serve, says):
    fake = serve(says("x"), limits=LimitSettings(completion_max_tokens=100))
    await fake.complete()
    assert fake.engine.requests[0].sampling.max_tokens == 100


@pytest.mark.parametrize("fields", [{}, {"prompt": None}, {"prompt": ""}, {"prompt": [""]}])
async def test_an_empty_prompt_starts_from_bos(serve, says, fields):
    fake = serve(says("x"))
    body = {"model": "fake", **fields}
    reply = await fake.client.post("/v1/completions", body)
    assert fake.engine.requests[0].prompt_token_ids == [BOS]
    assert reply.json["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, EOS]], [[97], [98, EOS]]),
    ],
)
async def test_the_four_shapes_of_prompts(serve, says, prompt, expected):
    fake = serve(says("x"))
    reply = await fake.complete(prompt=prompt, n=2)
    assert sorted(request.prompt_token_ids for request in fake.engine.requests) == sorted(expected)
    assert len(texts(reply)) == 2 * len(expected)
    assert reply.json["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert len({request.request_id for request in fake.engine.requests}) == len(expected)


async def test_choices_of_several_prompts_are_in_order(serve, says):
    fake = serve(lambda request, index: [*request.prompt_token_ids, 48 + index, EOS])
    fields: dict[str, Any] = {"prompt": ["a", "bb", "ccc"], "n": 2, "echo": True}
    plain = await fake.complete(**fields)
    assert texts(plain) == ["aa0", "aa1", "bbbb0", "bbbb1", "cccccc0", "cccccc1"]
    streamed = fold(await fake.complete(**fields, stream=True))
    assert [streamed[index]["text"] for index in range(6)] == texts(plain)


async def test_a_failing_prompt_fails_the_request_and_ends_the_others(serve):
    fake = serve(error=EngineFailed("broken"), error_after=5)
    with pytest.raises(EngineFailed):
        await fake.complete(prompt=["a", "b", "c"], max_tokens=50)
    assert fake.engine.num_open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_text_and_the_work(serve, says, stream):
    fake = serve(says("one, two, three"))
    reply = await fake.complete(
        stop=["three", "two"], stream=stream, stream_options={"include_usage": True} if stream else None
    )
    if stream:
        assert fold(reply)[0] == {"text": "one, ", "logprobs": None, "finish_reason": "stop"}
        usage = reply.events[-2]["usage"]
    else:
        assert texts(reply) == ["one, "]
        usage = reply.json["usage"]
    assert usage["completion_tokens"] == len("one, two")
    assert fake.engine.aborted[0] == (fake.engine.requests[0].request_id, 0)


async def test_a_stop_string_ends_one_of_several_sequences(serve, says):
    fake = serve(says("a.b", "abc"))
    assert texts(await fake.complete(stop=".", n=2)) == ["a", "abc"]


async def test_the_stop_string_can_be_shown(serve, says):
    assert texts(await serve(says("one, two")).complete(stop=",", include_stop_str_in_output=True)) == ["one,"]


async def test_stop_strings_are_not_looked_for_before_min_tokens(serve, says):
    assert texts(await serve(says("a.b.c.d")).complete(stop=".", min_tokens=3)) == ["a.b"]


async def test_special_tokens_are_hidden_unless_wanted(serve):
    fake = serve(lambda request, index: [104, BOS, 105, EOS])
    assert texts(await fake.complete()) == ["hi"]
    assert texts(await fake.complete(skip_special_tokens=False)) == ["h<s>i"]
    ignoring = serve(lambda request, index: [104, EOS, 105])
    assert texts(await ignoring.complete(ignore_eos=True, max_tokens=3)) == ["hi"]


async def test_logprobs_cover_what_is_shown(serve, says):
    fake = serve(says("aé"))
    for stream in (False, True):
        reply = await fake.complete(logprobs=2, stream=stream)
        choice = fold(reply)[0] if stream else reply.json["choices"][0]
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
        assert logprobs["text_offset"] == [0, 1, 1]
        assert len(logprobs["token_logprobs"]) == 3
        assert all(2 <= len(top) <= 3 for top in logprobs["top_logprobs"])
        assert all(top[token] == value for top, token, value in zip(
            logprobs["top_logprobs"], logprobs["tokens"], logprobs["token_logprobs"], strict=True))  # fmt: skip


async def test_logprobs_zero_is_the_chosen_token_only(serve, says):
    logprobs = (await serve(says("ab")).complete(logprobs=0)).json["choices"][0]["logprobs"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["a"], ["b"]]


async def test_logprobs_end_where_the_stop_string_began(serve, says):
    fake = serve(says("ab, c"))
    for stream in (False, True):
        reply = await fake.complete(logprobs=0, stop=", ", stream=stream)
        choice = fold(reply)[0] if stream else reply.json["choices"][0]
        assert choice["text"] == "ab"
        assert choice["logprobs"]["tokens"] == ["a", "b"]


async def test_a_held_back_token_comes_with_its_text(serve, says):
    reply = await serve(says("a,b")).complete(logprobs=0, stop=",x", stream=True)
    pieces = [(c["choices"][0]["text"], c["choices"][0]["logprobs"]) for c in reply.events[:-1]]
    assert [(text, logprobs and logprobs["tokens"]) for text, logprobs in pieces] == [
        ("a", ["a"]), (",b", [",", "b"]), ("", None),
    ]  # fmt: skip


async def test_echo_repeats_the_prompt(serve, says):
    fake = serve(says("def"))
    assert texts(await fake.complete(echo=True)) == ["abcdef"]
    assert fold(await fake.complete(echo=True, stream=True))[0]["text"] == "abcdef"
    assert texts(await fake.complete(prompt=[104, 105], echo=True)) == ["hidef"]
    assert texts(await fake.complete(prompt="", echo=True)) == ["def"]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_covers_both(serve, says, stream):
    fake = serve(says("de", "fg"))
    reply = await fake.complete(prompt=[BOS, 97, 98], echo=True, logprobs=1, n=2, stream=stream)
    choices = fold(reply) if stream else dict(enumerate(reply.json["choices"]))
    for index, end in enumerate(("de", "fg")):
        logprobs = choices[index]["logprobs"]
        assert choices[index]["text"] == "ab" + end
        assert logprobs["tokens"] == ["<s>", "a", "b", *end, "<|im_end|>"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert all(value < 0 for value in logprobs["token_logprobs"][1:])
        assert logprobs["text_offset"] == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("stream", [False, True])
async def test_max_tokens_zero_scores_the_prompt(serve, stream):
    fake = serve()
    reply = await fake.complete(prompt=["abc", "de"], echo=True, logprobs=0, max_tokens=0, n=2, stream=stream)
    choices = fold(reply) if stream else dict(enumerate(reply.json["choices"]))
    assert [choices[index]["text"] for index in range(4)] == ["abc", "abc", "de", "de"]
    assert all(choice["finish_reason"] == "length" for choice in choices.values())
    assert choices[3]["logprobs"]["tokens"] == ["d", "e"]
    assert {request.n for request in fake.engine.requests} == {1}
    if not stream:
        assert reply.json["usage"]["completion_tokens"] == 0


async def test_max_tokens_zero_without_logprobs_asks_nothing_of_the_engine(serve):
    fake = serve()
    assert texts(await fake.complete(max_tokens=0)) == [""]
    assert texts(await fake.complete(max_tokens=0, echo=True)) == ["abc"]
    assert fake.engine.requests == []


async def test_a_whole_context_can_be_scored_but_not_continued(serve, says):
    fake = serve(says("x"))
    assert (await fake.complete(prompt=[97] * 600, max_tokens=0, echo=True, logprobs=0)).status == 200
    assert (await fake.complete(prompt=[97] * 599)).status == 200
    for size in (600, 601):
        with pytest.raises(ContextLengthExceeded) as error:
            await fake.complete(prompt=[97] * size, max_tokens=1)
        assert error.value.param == "prompt"
    with pytest.raises(ContextLengthExceeded):
        await fake.complete(prompt=[97] * 601, max_tokens=0)


async def test_an_encoder_decoder_has_a_context_for_each_side(serve, says):
    fake = serve(says("x"), kind="encoder-decoder")
    reply = await fake.complete(prompt=[97] * 600, echo=True, logprobs=1)
    choice = reply.json["choices"][0]
    assert fake.engine.requests[0].sampling.max_tokens == 600
    assert fake.engine.requests[0].sampling.prompt_logprobs is None
    assert choice["text"] == "a" * 600 + "x"
    assert choice["logprobs"]["tokens"] == ["x"]
    assert choice["logprobs"]["text_offset"] == [600]
    with pytest.raises(ContextLengthExceeded):
        await fake.complete(prompt=[97] * 601)


async def test_best_of_returns_the_likeliest_and_counts_all(serve):
    fake = serve()
    fields: dict[str, Any] = {"max_tokens": 4, "logprobs": 0, "seed": 3, "prompt": ["abc", "xyz"]}
    every = (await fake.complete(n=6, **fields)).json["choices"]
    best = (await fake.complete(n=2, best_of=6, **fields)).json

    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    for prompt in range(2):
        candidates = sorted(every[prompt * 6 : prompt * 6 + 6], key=mean, reverse=True)
        got = best["choices"][prompt * 2 : prompt * 2 + 2]
        assert [choice["text"] for choice in got] == [choice["text"] for choice in candidates[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"]["completion_tokens"] == 48
    hidden = (await fake.complete(n=1, best_of=3, max_tokens=4)).json
    assert hidden["choices"][0]["logprobs"] is None
    assert fake.engine.requests[-1].sampling.logprobs == 0


async def test_best_of_equal_to_n_may_be_streamed(serve, says):
    assert (await serve(says("x")).complete(best_of=1, stream=True)).events[-1] == "[DONE]"


async def test_a_truncated_prompt_is_echoed_as_it_was_read(serve, says):
    fake = serve(says("!"))
    reply = await fake.complete(prompt="abcdef", truncate_prompt_tokens=2, echo=True, logprobs=0)
    assert texts(reply) == ["ef!"]
    assert reply.json["choices"][0]["logprobs"]["tokens"] == ["e", "f", "!", "<|im_end|>"]
    assert reply.json["usage"]["prompt_tokens"] == 2


async def test_an_engine_that_ends_too_early_is_an_error(serve, says):
    fake = serve(says("abc"))
    call = asyncio.create_task(fake.complete())
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
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": [[1], [259]]}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"echo": "loudly"}, "echo"),
    ],
)
async def test_refusals_name_the_parameter(serve, fields: dict[str, Any], param: str):
    fake = serve()
    with pytest.raises(ApiError) as error:
        await fake.complete(**fields)
    assert (error.value.status, error.value.param) == (400, param)
    assert fake.engine.requests == []


async def test_an_embedder_does_not_complete(serve):
    with pytest.raises(InvalidRequest) as error:
        await serve(kind="encoder").complete()
    assert error.value.param == "model"
